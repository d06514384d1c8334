"""Compare exams that were made from the outlines of real ones with these (tables I and III of the paper)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.core.constants import MODALITIES
from app.core.types import VolumeArray
from app.data.cases import Case
from app.data.labels import load_labels
from app.data.loading import load_complete
from app.evaluation.metrics.image import image_scores, pixel_accuracy
from app.evaluation.scoring import VolumeScores
from app.inference.simulation.build import RANGE
from app.inference.simulation.own_tissue import tissue_of_exam
from app.inference.simulation.simulator import ExamSimulator
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import BACKGROUND, denormalize, measure, normalize

log = logging.getLogger(__name__)

#: What simulators are compared by, each the higher the better.
SIMULATION_METRICS: Final = ("accuracy_tumour", "ssim_brain")
#: A pixel is right within 16 of 255 grey levels.
TOLERANCE: Final = 16 / 255
#: The lesion's parts by label.
PARTS: Final = {1: "core", 2: "oedema", 3: "enhancing"}


def score_simulator(simulator: ExamSimulator, cases: Iterable[Case], masks: Mapping[str, Path]) -> list[VolumeScores]:
    """Make each complete subject's exam from its own brain's outline and lesion, and score every sequence.

    Subjects without a usable segmentation are left out by name.

    Args:
        masks: per subject, its segmentation.

    Returns:
        Image scores, and of the lesion and each part `accuracy_<part>`: the share of pixels within 16 of 255.
    """
    rows: list[VolumeScores] = []
    for subject, volumes in load_complete(cases):
        grid = volumes[MODALITIES[0]].grid
        labels = load_labels(masks.get(subject), grid, subject)
        if labels is None:
            continue
        arrays = {m: v.data for m, v in volumes.items()}
        brain = vote_foreground(arrays)
        own = tissue_of_exam(arrays, brain, labels) if simulator.sees_own_tissue else None
        made = simulator.run(brain, labels, own)
        for number, m in enumerate(MODALITIES):
            scale = measure(arrays[m], m, RANGE)
            image = made.images[number]
            values = image_scores(denormalize(image, scale, brain), arrays[m], labels > 0, grid.lps_spacing)
            made_share, real_share = (_share(v) for v in (image, normalize(arrays[m], scale, BACKGROUND)))
            regions = {"tumour": labels > 0, **{part: labels == label for label, part in PARTS.items()}}
            for part, where in regions.items():
                values[f"accuracy_{part}"] = pixel_accuracy(made_share, real_share, where, TOLERANCE)
            rows.append(VolumeScores(subject, m, values))
        right = ", ".join(f"{r.modality} {r.values['accuracy_tumour']:.3f}" for r in rows[-len(MODALITIES) :])
        log.info("%s: right pixels in the lesion %s", subject, right)
    return rows


def _share(image: VolumeArray) -> NDArray[np.float64]:
    """Bring [-1, 1] to [0, 1]."""
    return (image.astype(np.float64) + 1) / 2
