"""Tell a head with its skull from a stripped brain, also where the air around it is 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.core.types import MaskArray, VolumeArray

#: Brightness of bone and of other tissue, against the upper quartile of all that is not background.
_BONE: Final = 0.2
_TISSUE: Final = 0.4
#: Millimetres from the surface: where scalp begins, where bone begins, and where brain lies again.
_SCALP_DEPTH: Final = 10.0
_BONE_DEPTH: Final = 20.0
_BRAIN_DEPTH: Final = 40.0
#: Share of the lines inward that must cross a skull; folds and ventricles look like one on some lines of any brain.
_MOST_LINES: Final = 0.4


def shows_skull(volumes: Sequence[VolumeArray], spacing: Sequence[float]) -> bool:
    """Tell whether bone, dark in every sequence, lies between bright scalp and brain.

    Args:
        volumes: sequences of one head on one grid, background 0, each with a positive voxel.
        spacing: millimetres per voxel along each axis.
    """
    thinned = [_brightness(volume) for volume in volumes]
    brightest = np.maximum.reduce(thinned)
    shares = [
        _skull_share(lines, spacing[axis])
        for axis in (0, 1)
        for lines in (np.moveaxis(brightest, axis, 0), np.moveaxis(brightest, axis, 0)[::-1])
    ]
    return float(np.median(shares)) > _MOST_LINES


def _brightness(volume: VolumeArray) -> VolumeArray:
    content = volume[::2, ::2, ::2]
    content = content[content > 0]
    # A sample may miss a few bright voxels, but then there is no head.
    level = float(np.percentile(content, 75)) if content.size else float(volume.max())
    return np.asarray(volume / np.float32(level), dtype=np.float32)


def _skull_share(volume: VolumeArray, spacing: float) -> float:
    """Measure the share of the lines along the first axis that cross a skull soon, going in from index 0."""
    lines = _middle_lines(volume)
    inside = lines > 0
    length = round(_BRAIN_DEPTH / spacing)
    surface = inside.argmax(axis=0)
    long_enough = inside.any(axis=0) & (surface + length <= lines.shape[0])
    if not long_enough.any() or length < 3:
        return 0.0
    lines, surface = lines[:, long_enough], surface[long_enough]
    depths = np.arange(length)[:, None]
    profiles = np.take_along_axis(lines, surface[None] + depths, axis=0)
    tissue = profiles > _TISSUE
    scalp = _first(tissue)
    bone = _first((profiles < _BONE) & (depths > scalp))
    brain = _first(tissue & (depths > bone))
    crossed = (scalp * spacing < _SCALP_DEPTH) & (bone * spacing < _BONE_DEPTH) & (brain < length)
    return float(crossed.mean())


def _middle_lines(volume: VolumeArray) -> VolumeArray:
    """Leave every second line along the first axis within the middle half of the content."""
    shadow: MaskArray = np.asarray((volume > 0).any(axis=0))
    rows, columns = (_middle(np.asarray(shadow.any(axis=axis))) for axis in (1, 0))
    return volume[:, rows, columns].reshape(volume.shape[0], -1)[:, ::2]


def _middle(content: MaskArray) -> slice:
    places = np.flatnonzero(content)
    quarter = (places[-1] - places[0]) // 4
    return slice(int(places[0] + quarter), int(places[-1] - quarter + 1))


def _first(hits: MaskArray) -> NDArray[np.int64]:
    """Find the first hit of each column; the number of rows where there is none."""
    return np.asarray(np.where(hits.any(axis=0), hits.argmax(axis=0), hits.shape[0]), dtype=np.int64)
