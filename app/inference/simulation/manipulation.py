"""Change lesions: scale, mirror and move their maps (Fig. 7 of the paper), and let them stand out more or less.

The fourth change of the figure, exchanging, is choosing another brain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.core.types import MaskArray, VolumeArray
from app.preprocessing.foreground import bounding_box

Labels = NDArray[np.uint8]

#: Farthest move along each axis in voxels, and how often a place is sought.
_REACH: Final = 40
_TRIES: Final = 100
#: Share of what lay inside the brain that must still do after a move.
_KEPT: Final = 0.98


def inside_share(labels: Labels, brain: MaskArray) -> float:
    """Give the share of a lesion that lies in the brain; 0 for none."""
    total = int(np.count_nonzero(labels))
    return int(np.count_nonzero(labels[brain])) / total if total else 0.0


def scale_lesion(labels: Labels, factor: float) -> Labels:
    """Grow or shrink a lesion about its centre, its parts together.

    Args:
        labels: uint8 L x P x S with a lesion.
        factor: of its volume, above 0; each edge changes by the cube root.
    """
    if factor == 1:
        return labels.copy()
    from scipy.ndimage import map_coordinates

    edge = factor ** (1 / 3)
    box = bounding_box(labels > 0)
    small = np.pad(labels[box], 1)
    places, sources = [], []
    for side, length in zip(box, labels.shape, strict=True):
        middle, half = (side.start + side.stop - 1) / 2, (side.stop - side.start) / 2 * edge
        place = np.arange(max(0, int(np.ceil(middle - half))), min(length - 1, int(np.floor(middle + half))) + 1)
        places.append(place)
        sources.append(middle + (place - middle) / edge - side.start + 1)
    where = np.meshgrid(*sources, indexing="ij")
    names = np.unique(small)
    # The label that fills most of a voxel: by the nearest voxel alone thin parts come and go.
    shares = [map_coordinates((small == name).astype(np.float32), where, order=1) for name in names]
    scaled = np.zeros_like(labels)
    scaled[np.ix_(*places)] = names[np.argmax(shares, axis=0)]
    # What shrinks must not vanish.
    return scaled if scaled.any() else labels.copy()


def mirror_lesion(labels: Labels, brain: MaskArray) -> Labels:
    """Mirror a lesion from left to right about the middle of the brain's box; what leaves the volume is lost."""
    side = bounding_box(brain)[0]
    mirrored = np.zeros_like(labels)
    place = np.arange(labels.shape[0])
    source = side.start + side.stop - 1 - place
    there = (source >= 0) & (source < labels.shape[0])
    mirrored[place[there]] = labels[source[there]]
    return mirrored


def shift_lesion(labels: Labels, shift: Sequence[int]) -> Labels:
    """Shift a lesion by whole voxels along each axis; what leaves the volume is lost."""
    target, source = [], []
    for step, length in zip(shift, labels.shape, strict=True):
        target.append(slice(max(step, 0), length + min(step, 0)))
        source.append(slice(max(-step, 0), length - max(step, 0)))
    shifted = np.zeros_like(labels)
    shifted[tuple(target)] = labels[tuple(source)]
    return shifted


def move_lesion(labels: Labels, brain: MaskArray, random: np.random.Generator) -> tuple[Labels, tuple[int, int, int]]:
    """Move a lesion to another place where as good as all of it lies in the brain.

    Returns:
        The moved lesion and its shift in voxels; the same and no shift where no place was found.
    """
    box, total = bounding_box(labels > 0), int(np.count_nonzero(labels[brain]))
    small, start = labels[box], [side.start for side in box]
    for _ in range(_TRIES):
        shift = random.integers(-_REACH, _REACH + 1, 3)
        first = [s + int(d) for s, d in zip(start, shift, strict=True)]
        ends = [f + n for f, n in zip(first, small.shape, strict=True)]
        if min(first) < 0 or any(e > n for e, n in zip(ends, labels.shape, strict=True)):
            continue
        place = brain[tuple(slice(f, e) for f, e in zip(first, ends, strict=True))]
        if np.count_nonzero(small[place]) >= _KEPT * total:
            x, y, z = (int(d) for d in shift)
            return shift_lesion(labels, (x, y, z)), (x, y, z)
    return labels.copy(), (0, 0, 0)


def change_contrast(image: VolumeArray, labels: Labels, brain: MaskArray, factor: float) -> VolumeArray:
    """Let a lesion stand out more or less of the healthy brain: its difference from that one's median is multiplied.

    Args:
        image: float32 L x P x S; labels, brain: same shape.
        factor: 1 changes nothing, 0 hides the lesion; it fades in over its edge (a Gaussian of one voxel).
    """
    lesion, healthy = labels > 0, brain & (labels == 0)
    if factor == 1 or not lesion.any() or not healthy.any():
        return image
    from scipy.ndimage import gaussian_filter

    middle = np.float32(np.median(image[healthy]))
    weight = gaussian_filter(lesion.astype(np.float32), 1.0)
    changed = middle + (image - middle) * (1 + np.float32(factor - 1) * weight)
    return np.where(brain, changed, image).astype(np.float32)
