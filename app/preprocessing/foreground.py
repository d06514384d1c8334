"""Find the brain and the box around it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from app.core.constants import Modality
from app.core.types import MaskArray, VolumeArray


def vote_foreground(volumes: Mapping[Modality, VolumeArray]) -> MaskArray:
    """Mark the brain: voxels where at most half of the inputs are background.

    So a voxel is background where two of three inputs, or both of two, say so.

    Args:
        volumes: one to four arrays of one shape, background 0.
    """
    background = sum((v <= 0).astype(np.uint8) for v in volumes.values())
    return np.asarray(2 * np.asarray(background) <= len(volumes))


def bounding_box(foreground: MaskArray) -> tuple[slice, slice, slice]:
    """Find the smallest box around all true voxels.

    Raises:
        ValueError: there are none.
    """
    if not foreground.any():
        raise ValueError("the foreground is empty")
    sides = []
    for axis in range(3):
        indices = np.flatnonzero(foreground.any(axis=tuple(a for a in range(3) if a != axis)))
        sides.append(slice(int(indices[0]), int(indices[-1]) + 1))
    return sides[0], sides[1], sides[2]
