"""Make the slices of a stacked volume agree with their neighbours, and measure how far they do."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from app.core.types import MaskArray, VolumeArray

#: Weights of a slice and of each neighbour in the average across slices.
_OWN, _NEIGHBOUR = 0.5, 0.25
_ROUNDS = 2
#: Deviations along L, P and S, in voxels, of the window in which brightness is compared.
_WINDOW: Final = (10.0, 10.0, 0.5)
#: Share of a voxel that the whole brain counts in each window, so that a few voxels decide nothing.
_CALM: Final = 0.01
#: A place is made so many times darker or brighter at most.
_MOST: Final = 3.0


def even_brightness(volume: VolumeArray, tissue: NDArray[np.uint8], brain: MaskArray, lesion: MaskArray) -> VolumeArray:
    """Give each tissue the same brightness in all slices and places, as a scan without bias field has it.

    Slices are made one by one, and each guesses how bright its scanner was. The volume is divided by what it shows in
    the healthy brain around a place over what the tissues there show in the whole brain; a lesion is as bright against
    its surroundings as before.

    Args:
        volume: in [-1, 1], axes L, P, S.
        tissue: probabilities from 0 to 255, tissues x L x P x S; all 0 where they are not known.
        brain, lesion: bool, L x P x S.

    Returns:
        In [-1, 1]; where no tissue is known at all, the volume as it was.
    """
    shares = tissue.astype(np.float32) / 255
    healthy = (brain & ~lesion & (shares.sum(axis=0) > 0.5)).astype(np.float32)
    place = healthy > 0
    if not place.any():
        return volume
    light = (volume + 1) / 2
    brightness = np.linalg.lstsq(shares[:, place].T, light[place], rcond=None)[0]
    expected = np.tensordot(brightness, shares, axes=1).astype(np.float32)
    calm = _CALM * float(light[place].mean())
    shown, wanted = (gaussian_filter(healthy * v, _WINDOW) + calm for v in (light, expected))
    field = np.clip(shown / np.maximum(wanted, calm), 1 / _MOST, _MOST)
    return np.where(brain, (2 * light / field - 1).clip(-1, 1), volume).astype(np.float32)


def even_slices(volume: VolumeArray, brain: MaskArray) -> VolumeArray:
    """Take the steps of brightness between axial slices out, then average each voxel with its two neighbours.

    A slice that is brighter than the mean of its neighbours, over the brain that all three share, gives up half of
    that, twice; a trend along many slices stays. The average has weights of 1, 2 and 1, in the brain alone.

    Args:
        volume: in [-1, 1], axes L, P, S; what is outside the brain stays.
        brain: bool, same shape.
    """
    even = volume.copy()
    for _ in range(_ROUNDS):
        even += np.where(brain, _steps(even, brain) / -2, 0).astype(np.float32)
    return _averaged(even, brain)


def _steps(volume: VolumeArray, brain: MaskArray) -> NDArray[np.float32]:
    """How much brighter each slice is than its neighbours' mean, 1 x 1 x S; 0 at both ends of the brain."""
    shared = brain[..., 1:-1] & brain[..., :-2] & brain[..., 2:]
    bend = volume[..., 1:-1] - (volume[..., :-2] + volume[..., 2:]) / 2
    counts = shared.sum(axis=(0, 1))
    steps = np.zeros(volume.shape[2], np.float32)
    steps[1:-1] = (bend * shared).sum(axis=(0, 1)) / np.maximum(counts, 1)
    return steps[None, None]


def _averaged(volume: VolumeArray, brain: MaskArray) -> VolumeArray:
    sums, weights = _OWN * volume * brain, (_OWN * brain).astype(np.float32)
    for near, far in ((slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))):
        sums[..., near] += _NEIGHBOUR * (volume * brain)[..., far]
        weights[..., near] += _NEIGHBOUR * brain[..., far]
    return np.where(brain, sums / np.maximum(weights, _NEIGHBOUR), volume).astype(np.float32)


def stripe_ratio(volume: VolumeArray, brain: MaskArray) -> float:
    """Divide the mean absolute step between axial slices by that between neighbours within them.

    About 1 in a scan with cubic voxels; above it the slices flicker. NaN where nothing varies. Unlike
    `app.evaluation.metrics.image.stripe_score` it needs no real volume.

    Args:
        volume: axes L, P, S.
        brain: bool, same shape.
    """
    across, within = _step(volume, brain, 2), (_step(volume, brain, 0) + _step(volume, brain, 1)) / 2
    return across / within if within > 0 else math.nan


def _step(volume: VolumeArray, brain: MaskArray, axis: int) -> float:
    front = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
    back = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
    both = brain[front] & brain[back]
    return float(np.abs(volume[back] - volume[front])[both].mean()) if both.any() else 0.0
