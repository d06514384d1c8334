"""What joining views is worth: each view alone, their mean, median and mean by confidence, with mirrored copies too.

`python -m benchmarks fusion --data DIR [--model NAME] [--weights DIR] [--contrast 0,0.25,0.4]`: drops each sequence of
each complete subject of DIR in turn and scores what the model makes of the others in every way from the same slices.
All ways join the very same slices of the same weights; those by confidence are there where the model has a head for it.
The ways before the contrasts use the model's own contrast; the contrasts are of the mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from app.cli.argument_types import share
from app.core.config import FUSIONS, WEIGHTS_DIR, FusionName
from app.core.constants import MODALITIES, REFERENCE_OF, Modality, View
from app.core.errors import UsageError
from app.core.types import VolumeArray
from app.data.discovery import scan
from app.data.labels import load_labels
from app.data.loading import load_complete
from app.data.nifti_writer import to_array
from app.data.segmentations import find_segmentations
from app.evaluation.metrics.image import image_scores
from app.inference.models import NetworkModel
from app.inference.pipeline import finish, predict, prepare
from app.inference.prepared import Prepared
from app.inference.slicewise.view_fusion import FusedPrediction, FusionOptions, ViewFusion
from app.inference.synthesizer import Synthesizer
from benchmarks._common import machine

COLUMNS = ("official_healthy", "official_tumour", "ssim_brain", "ssim_tumour", "psnr_brain", "stripe_superior")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model")
    parser.add_argument("--weights", type=Path, default=WEIGHTS_DIR)
    parser.add_argument("--contrast", type=_shares, default=[0.0, 0.25, 0.4], help="from 0 to 1, separated by commas")
    options = parser.parse_args()
    # What is joined is what the network makes; a refiner would see the volume after that.
    model = Synthesizer(options.model, weights=options.weights, device="cpu", refine=False).model
    if not isinstance(model, NetworkModel):
        raise UsageError(f"model {model.identity.name!r} has no views to join; name a generator with --model.")
    contrasts: list[float] = options.contrast
    cases = [c for c in scan(options.data).cases if not c.absent]
    if not cases:
        raise UsageError(f"{options.data} holds no complete subject.")
    masks = find_segmentations(options.data)
    found: dict[str, list[list[float]]] = {}
    for subject, volumes in load_complete(cases):
        first = volumes["t1n"]
        labels = load_labels(masks.get(subject), first.grid, subject)
        tumour = None if labels is None else np.asarray(labels > 0)
        for target in MODALITIES:
            maker = model.model_for(target)
            prepared = prepare({m: v for m, v in volumes.items() if m != target}, maker)
            for name, scores, contrast in _ways(prepared, target, maker, contrasts):
                reference = REFERENCE_OF[target]
                made = finish(scores, prepared, target, reference, _with(maker, contrast=contrast))
                values = image_scores(
                    to_array(made, prepared.grids[reference]), volumes[target].data, tumour, first.grid.lps_spacing
                )
                found.setdefault(name, []).append([values[c] for c in COLUMNS])
        print(f"{subject} done", flush=True)
    print(f"| {model.identity.name} | n | " + " | ".join(COLUMNS) + " |\n" + "|---" * (2 + len(COLUMNS)) + "|")
    for name, rows in found.items():
        means = zip(COLUMNS, np.nanmean(rows, axis=0), strict=True)
        cells = " | ".join(f"{v:.5f}" if c.startswith("official") else f"{v:.4f}" for c, v in means)
        print(f"| {name} | {len(rows)} | {cells} |")
    print(machine())


def _shares(text: str) -> list[float]:
    return [share(part) for part in text.split(",")]


def _ways(
    prepared: Prepared, target: Modality, model: NetworkModel, contrasts: list[float]
) -> Iterator[tuple[str, VolumeArray, float]]:
    """Name, scores and contrast of each way to join the views."""
    views = _views(prepared, target, model)
    mirrored = replace(
        prepared,
        arrays={m: np.ascontiguousarray(a[::-1]) for m, a in prepared.arrays.items()},
        foreground=prepared.foreground[::-1].copy(),
    )
    copies = _views(mirrored, target, model)
    fusions = FUSIONS if all(v.error is not None for v in views.values()) else FUSIONS[:2]
    for view, made in views.items():
        yield f"{view} alone", made.volume, model.contrast
    for fusion in fusions:
        yield fusion, _joined(fusion, views), model.contrast
    for fusion in fusions:
        yield f"{fusion}, and of the mirrored brain", _joined(fusion, views, copies), model.contrast
    for contrast in contrasts:
        yield f"mean, contrast {contrast:g}", _joined("mean", views), contrast


def _joined(
    fusion: FusionName, views: dict[View, FusedPrediction], copies: dict[View, FusedPrediction] | None = None
) -> VolumeArray:
    """All views in one, with what was made of the mirrored brain where it is given."""
    fused, weight = ViewFusion(fusion), 1 / len(views) / (1 if copies is None else 2)
    for view, single in views.items():
        volume, error = map(_tensor, (single.volume, single.error))
        fused.add(view, volume, error, weight)
    for view, single in (copies or {}).items():
        volume, error = map(_tensor, (single.volume, single.error))
        fused.add(view, volume.flip(0), None if error is None else error.flip(0), weight)
    return fused.result().volume


def _tensor(volume: VolumeArray | None) -> Any:
    return None if volume is None else torch.from_numpy(volume)


def _views(prepared: Prepared, target: Modality, model: NetworkModel) -> dict[View, FusedPrediction]:
    """What the network makes of each view, and how wrong it expects to be where it has a head for that."""
    alone = replace(model, fusion=FusionOptions(with_error=model.spec.has_confidence))
    return {view: predict(prepared, target, _with(alone, views=(view,))) for view in model.spec.views}


def _with(model: NetworkModel, **changes: Any) -> NetworkModel:
    """The model with other fields in its specification."""
    return replace(model, spec=model.spec.model_copy(update=changes))


if __name__ == "__main__":
    main()
