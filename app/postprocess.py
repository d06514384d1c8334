"""What a network's volume must obey before it becomes intensities again; all in model space."""

from __future__ import annotations

import numpy as np

from app.intensity import Intensity
from app.types import MaskArray, VolumeArray


def clean(scores: VolumeArray, foreground: MaskArray, intensity: Intensity, background: float) -> VolumeArray:
    """Background where the inputs voted so, nothing that is not finite, nothing below zero intensity.

    Args:
        scores: float32, any shape.
        foreground: the majority vote of the inputs, same shape (`app.preprocess.vote_foreground`).
        intensity: of the target; its zero is at score -mean / std.
        background: score of background voxels.

    Returns:
        A new array; a voxel that was not finite gets the lowest score.
    """
    lowest = np.float32(-intensity.mean / intensity.std)
    cleaned = np.where(np.isfinite(scores), scores, lowest)
    np.maximum(cleaned, lowest, out=cleaned)
    return np.where(foreground, cleaned, np.float32(background))
