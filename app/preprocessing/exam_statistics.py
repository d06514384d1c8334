"""Statistics that tell how like other exams an exam is: brightness, sharpness, and how its sequences relate."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.core.constants import MODALITIES, Modality
from app.core.types import MaskArray, VolumeArray
from app.preprocessing.foreground import bounding_box

#: What is measured of each sequence, in words; keys of `exam_statistics` end so.
OF_SEQUENCE: Final[dict[str, str]] = {
    "ratio": "the brain's mean over its deviation",
    "tail": "its brightest over its middle value (percentiles 99.5 and 50)",
    "dark": "its darkest over its middle value (percentiles 5 and 50)",
    "step": "the step between neighbouring voxels over the deviation",
    "coarseness": "the step along the sharpest axis over that along the smoothest (thick slices raise it)",
}
#: Of two sequences.
CORRELATION: Final = "correlation"
#: Of the exam.
BRAIN_ML: Final = "brain ml"
_PERCENTILES: Final = (5, 50, 99.5)


def exam_statistics(
    arrays: Mapping[Modality, VolumeArray], brain: MaskArray, spacing: tuple[float, float, float]
) -> dict[str, float]:
    """Measure an exam.

    None depends on a sequence's scale: doubling its values changes nothing.

    Args:
        arrays: the present sequences in the file's units, float32, axes (left, posterior, superior).
        brain: where they show brain, same shape, not empty.
        spacing: voxel edge lengths in millimetres.

    Returns:
        By name: `<sequence> <key of OF_SEQUENCE>`, `<sequence> <sequence> correlation` in challenge order, `brain ml`.
    """
    box = bounding_box(brain)
    inside = brain[box]
    statistics = {BRAIN_ML: float(np.count_nonzero(inside) * np.prod(spacing) / 1000)}
    scores: dict[Modality, NDArray[np.float32]] = {}
    for modality in (m for m in MODALITIES if m in arrays):
        values = np.asarray(arrays[modality][box], dtype=np.float32)
        dark, middle, bright = (float(v) for v in np.percentile(values[inside], _PERCENTILES))
        values = np.minimum(values, np.float32(bright))
        flat = values[inside]
        mean, deviation = float(flat.mean(dtype=np.float64)), float(flat.std(dtype=np.float64))
        # A constant sequence has no contrast to measure; what loads it has warned of it.
        deviation = max(deviation, 1e-6 * max(abs(mean), 1e-6))
        middle = max(middle, 1e-6 * deviation)
        steps = [_step(values, inside, axis) / deviation for axis in range(3)]
        found = {
            "ratio": mean / deviation,
            "tail": bright / middle,
            "dark": dark / middle,
            "step": float(np.mean(steps)),
            "coarseness": max(max(steps) / max(min(steps), 1e-6), 1.0),
        }
        statistics |= {f"{modality} {key}": found[key] for key in OF_SEQUENCE}
        scores[modality] = (flat - np.float32(mean)) / np.float32(deviation)
    for first, second in combinations(scores, 2):
        products = scores[first] * scores[second]
        statistics[f"{first} {second} {CORRELATION}"] = float(products.mean(dtype=np.float64))
    return statistics


def in_words(name: str) -> str:
    """Say what a statistic of `exam_statistics` is."""
    if name == BRAIN_ML:
        return "the volume of the brain in ml"
    first, *rest = name.split()
    if rest[-1] == CORRELATION:
        return f"the correlation of {first} and {rest[0]}"
    return f"{first}, {OF_SEQUENCE[rest[-1]]}"


def _step(values: VolumeArray, inside: MaskArray, axis: int) -> float:
    """Mean absolute difference of neighbours along an axis that both lie inside; 0 where there are none."""
    there = np.moveaxis(inside, axis, 0)
    both = there[1:] & there[:-1]
    steps = np.abs(np.diff(np.moveaxis(values, axis, 0), axis=0))[both]
    return float(steps.mean(dtype=np.float64)) if steps.size else 0.0
