"""Give a made sequence some of the fine detail back that its slices and the mean of its views lost.

A network averages over what it cannot know, and so does the mean of views that differ: the made sequence is smoother
than a scan. Source: unsharp masking, over the brain alone.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

from app.core.types import MaskArray, VolumeArray

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
    box = _box_of(brain)
    counted = brain[box] & np.isfinite(volume[box])
    inside = torch.from_numpy(counted)
    values, weight = torch.from_numpy(np.where(counted, volume[box], np.float32(0))), inside.float()
    # Of the brain alone, so that its rim does not count as detail.
    smooth = _blurred(values) / _blurred(weight).clamp(min=1e-3)
    out = volume.copy()
    out[box] = torch.where(inside, smooth + factor * (values - smooth), torch.from_numpy(volume[box])).numpy()
    return out


def _box_of(brain: MaskArray) -> tuple[slice, ...]:
    """Find the box of the brain."""
    box = []
    for axis in range(brain.ndim):
        filled = np.flatnonzero(brain.any(axis=tuple(a for a in range(brain.ndim) if a != axis)))
        box.append(slice(int(filled[0]), int(filled[-1]) + 1))
    return tuple(box)


def _blurred(volume: Tensor) -> Tensor:
    """Blur by a Gaussian; beyond the edge everything is 0."""
    taps = np.exp(-0.5 * (np.arange(_REACH + 1) / _DEVIATION) ** 2)
    taps /= 2 * taps.sum() - taps[0]
    for axis, length in enumerate(volume.shape):
        # Sums of shifted volumes: on a processor faster than a convolution.
        out = volume * float(taps[0])
        for shift in range(1, min(_REACH, length - 1) + 1):
            before, behind = (volume.narrow(axis, start, length - shift) for start in (0, shift))
            out.narrow(axis, shift, length - shift).add_(before, alpha=float(taps[shift]))
            out.narrow(axis, 0, length - shift).add_(behind, alpha=float(taps[shift]))
        volume = out
    return volume
