"""What a segmenter finds with a synthesised sequence in the place of the real one: Dice against the true masks.

`python -m benchmarks downstream --made DIR --reference DATA [--sequence t1c]`; DIR holds `<subject>-t1c.nii.gz` as
`synthesize` writes them. The 2D `segmenter` of `weights/` finds the tumours on axial slices. A generator that it
taught (the focal Tversky loss) must not be measured by it. The first row is its result on the four real sequences. The
last column is the mean z-score of the enhancing tumour in the sequence asked for, by each image's own mean and
deviation.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from app.core.config import WEIGHTS_DIR
from app.core.constants import MODALITIES, Modality
from app.core.types import VolumeArray
from app.data.discovery import scan
from app.data.labels import load_labels
from app.data.loading import load_complete
from app.data.nifti_reader import load_volume
from app.data.segmentations import find_segmentations
from app.evaluation.metrics.segmentation import segmentation_scores
from app.evaluation.scoring import find_pairs
from app.inference.tumour.segmentation import segment_slices
from app.networks.enhancer import ENHANCING
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import BACKGROUND, measure, normalize
from app.registry.checkpoints import load_segmenter2d
from app.registry.manifest import read_manifest, spec_as
from app.registry.spec import Segmenter2dSpec
from app.training.data.cache import NORMALIZATION

REGIONS = ("dice_WT", "dice_TC", "dice_ET")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--made", type=Path, required=True)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--sequence", choices=MODALITIES, default="t1c")
    options = parser.parse_args()
    entry = read_manifest(WEIGHTS_DIR).entry("segmenter")
    canvas = spec_as(entry, Segmenter2dSpec).canvas
    network, processor = load_segmenter2d(entry), torch.device("cpu")
    pairs = find_pairs(options.made, options.reference)[0]
    made = {p.subject: p.prediction for p in pairs if p.modality == options.sequence}
    masks = find_segmentations(options.reference)
    rows: dict[str, list[list[float]]] = {"real": [], f"made {options.sequence}": []}
    for subject, volumes in load_complete(c for c in scan(options.reference).cases if c.subject in made):
        truth = load_labels(masks.get(subject), volumes["t1n"].grid, subject)
        if truth is None:
            continue
        real = {m: v.data for m, v in volumes.items()}
        brain = vote_foreground(real)
        for name, arrays in zip(rows, (real, {**real, options.sequence: load_volume(made[subject]).data}), strict=True):
            scores = [_scores(arrays[m], m) for m in MODALITIES]
            found = segment_slices(network, scores, brain, ("axial",), canvas, subject, processor, BACKGROUND)
            values = segmentation_scores(found, truth, volumes["t1n"].grid.lps_spacing)
            brightness = float(scores[MODALITIES.index(options.sequence)][truth == ENHANCING].mean())
            rows[name].append([*(values[r] for r in REGIONS), brightness])
    print("| sequences | n | WT | TC | ET | z in ET |\n|---|---|---|---|---|---|")
    for name, values_of_all in rows.items():
        print(
            f"| {name} | {len(values_of_all)} | "
            + " | ".join(f"{v:.3f}" for v in np.nanmean(values_of_all, axis=0))
            + " |"
        )


def _scores(volume: VolumeArray, modality: Modality) -> VolumeArray:
    return normalize(volume, measure(volume, modality, NORMALIZATION), BACKGROUND)


if __name__ == "__main__":
    main()
