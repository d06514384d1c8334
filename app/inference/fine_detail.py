"""Give a made sequence some of the fine detail back that its slices and the mean of its views lost.

A network averages over what it cannot know, and so does the mean of views that differ: the made sequence is smoother
than a scan. Source: unsharp masking, over the brain alone.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from scipy.ndimage import gaussian_filter

from app.core.types import MaskArray, VolumeArray
from app.preprocessing.foreground import bounding_box

#: Deviation of the blur, in voxels: what it takes away is fine. Voxels on each side that it reaches.
_DEVIATION: Final = 1.2
_REACH: Final = 4


def strengthen_detail(volume: VolumeArray, brain: MaskArray, factor: float) -> VolumeArray:
    """Multiply the fine detail inside the brain: what a Gaussian blur of the brain alone takes away.

    Args:
        volume: normalized, float32, three axes. A voxel that is not finite stays, and counts for no other.
        brain: same shape.
        factor: 1 changes nothing.

    Returns:
        The volume itself where there is nothing to do, else a new array, the same outside the brain.
    """
    if factor == 1 or not brain.any():
        return volume
    box = bounding_box(brain)
    inside = brain[box] & np.isfinite(volume[box])
    values = np.where(inside, volume[box], np.float32(0))
    # Of the brain alone, so that its rim does not count as detail.
    smooth = _blurred(values) / np.maximum(_blurred(inside.astype(np.float32)), 1e-3)
    out = volume.copy()
    out[box] = np.where(inside, smooth + np.float32(factor) * (values - smooth), volume[box])
    return out


def _blurred(volume: VolumeArray) -> VolumeArray:
    """Blur by a Gaussian; beyond the edge everything is 0."""
    return np.asarray(gaussian_filter(volume, _DEVIATION, mode="constant", radius=_REACH), dtype=np.float32)
