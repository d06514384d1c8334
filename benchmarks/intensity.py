"""What intensity encoding gives: Table 1 of the BraSyn 2024 winner, on complete subjects.

`python -m benchmarks intensity --data DATA --model CODED [--without PLAIN] [--weights DIR]`. CODED is a generator with
intensity encoding, PLAIN the same network without. Each sequence of each subject is dropped in turn. CODED is run with
the prior's mean, with a sample of it clipped at two deviations, and with the true median, which no user has.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from app.core.config import WEIGHTS_DIR, ModelOptions, RuntimeOptions
from app.core.constants import MODALITIES, REFERENCE_OF, Modality
from app.data.discovery import scan
from app.data.labels import load_labels
from app.data.loading import load_complete
from app.data.nifti_reader import Volume
from app.data.nifti_writer import to_array
from app.data.segmentations import find_segmentations
from app.evaluation.metrics.image import image_scores
from app.evaluation.scoring import VolumeScores
from app.evaluation.statistics import summarise
from app.inference.loading import open_model
from app.inference.models import NetworkModel
from app.inference.pipeline import synthesize_case
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import measure
from app.preprocessing.target_intensity import brain_median
from app.registry.manifest import read_manifest

COLUMNS = ("official_healthy", "official_tumour", "ssim_brain", "ssim_tumour", "psnr_brain", "stripe_superior")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--without")
    parser.add_argument("--weights", type=Path, default=WEIGHTS_DIR)
    options = parser.parse_args()
    coded = _open(options.model, options.weights)
    plain = _open(options.without, options.weights) if options.without else None
    rows: dict[str, list[VolumeScores]] = {}
    cases = scan(options.data).cases
    masks = find_segmentations(options.data, cases)
    for subject, volumes in load_complete(cases):
        labels = load_labels(masks.get(subject), volumes[MODALITIES[0]].grid, subject)
        tumour = None if labels is None else np.asarray(labels > 0)
        for target in MODALITIES:
            for name, model in _variants(plain, coded, volumes, target):
                inputs = {m: v for m, v in volumes.items() if m != target}
                image = synthesize_case(inputs, target, REFERENCE_OF[target], model).image
                made = to_array(image, inputs[REFERENCE_OF[target]].grid)
                values = image_scores(made, volumes[target].data, tumour, volumes[target].grid.lps_spacing)
                rows.setdefault(name, []).append(VolumeScores(subject, target, values))
    print("| model | " + " | ".join(f"SSIM in brain, {m}" for m in MODALITIES) + " | " + " | ".join(COLUMNS) + " |")
    print("|---" * (1 + len(MODALITIES) + len(COLUMNS)) + "|")
    for name, scores in rows.items():
        print(f"| {name} | " + " | ".join(_cells(scores)) + " |")


def _open(name: str, weights: Path) -> NetworkModel:
    model = open_model(read_manifest(weights), ModelOptions(weights, name), RuntimeOptions("cpu"))
    assert isinstance(model, NetworkModel)
    return model


def _variants(
    plain: NetworkModel | None, coded: NetworkModel, volumes: Mapping[Modality, Volume], target: Modality
) -> Iterator[tuple[str, NetworkModel]]:
    """The rows of the table, each with its model for one subject and sequence."""
    scheme = coded.spec.normalization
    brain = vote_foreground({m: v.data for m, v in volumes.items()})
    truth = brain_median(volumes[target].data, brain, measure(volumes[target].data, target, scheme))
    if plain is not None:
        yield "without the code", plain
    yield "the prior's mean", coded
    yield "a sample (2 sigma)", replace(coded, intensity_choice="sample")
    yield "the true median", replace(coded, intensity_choice=str(truth))


def _cells(scores: list[VolumeScores]) -> list[str]:
    summary = summarise(scores)
    per_sequence = [f"{summary[m]['ssim_brain']['mean']:.3f}" for m in MODALITIES]
    means = {c: summary["all"][c]["mean"] for c in COLUMNS}
    return [*per_sequence, *(f"{v:.4f}" if "official" in c else f"{v:.3f}" for c, v in means.items())]


if __name__ == "__main__":
    main()
