"""Intensities to a model's scale and back: percentile clip, z-score, and the exact inverse.

Each step has two halves: one measures (`measure`), one applies and is pure (`normalize`, `restore`). What was
measured is kept, so that the inverse can be built later.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from app.constants import Modality
from app.intensity import Intensity, Normalization
from app.types import MaskArray, VolumeArray


def vote_foreground(volumes: Mapping[Modality, VolumeArray]) -> MaskArray:
    """Where the brain is: False where more than half of the inputs are background (two of three, both of two).

    Args:
        volumes: one to four arrays of one shape, background 0.
    """
    background = sum((v <= 0).astype(np.uint8) for v in volumes.values())
    return np.asarray(2 * np.asarray(background) <= len(volumes))


def measure(volume: VolumeArray, modality: Modality, normalization: Normalization) -> Intensity:
    """The intensity parameters of one sequence.

    Args:
        volume: float32, any shape, background 0, at least one positive voxel.
    """
    if normalization.scheme == "dataset":
        return normalization.intensities[modality]
    brain = volume[volume > 0]
    clip = float(np.percentile(brain, normalization.percentile))
    np.minimum(brain, clip, out=brain)
    mean = float(brain.mean(dtype=np.float64))
    # In place, so that no float64 copy of the brain is ever held; the sums are float64 all the same.
    brain -= np.float32(mean)
    np.square(brain, out=brain)
    std = float(np.sqrt(brain.mean(dtype=np.float64)))
    # A two-valued image can be constant below its percentile; its scores are then all 0.
    return Intensity(mean=mean, std=std if std > 1e-6 * mean else max(mean, 1e-6), clip=clip)


def normalize(volume: VolumeArray, intensity: Intensity, background: float | None) -> VolumeArray:
    """Intensities to scores, float32; voxels that are 0 become `background` (see `Normalization`)."""
    scores = np.minimum(volume, np.float32(intensity.clip))
    scores -= np.float32(intensity.mean)
    scores /= np.float32(intensity.std)
    if background is not None:
        scores[volume <= 0] = background
    return scores


def restore(scores: VolumeArray, intensity: Intensity, foreground: MaskArray) -> VolumeArray:
    """The inverse of `normalize` inside `foreground`; 0 outside, never negative."""
    values = scores * np.float32(intensity.std)
    values += np.float32(intensity.mean)
    np.maximum(values, 0, out=values)
    values[~foreground] = 0
    return values
