"""The space in which models work: 1 mm, on the anchor's own axes; the way there, and back to a sequence's own grid.

Each way has one interpolation. There is no atlas: nothing but rigid motion is undone.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, Final

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from app.core.types import Affine, MaskArray, VolumeArray

#: Edge of a voxel in millimetres.
WORKING_SPACING: Final = 1.0
#: From nibabel's world (right, anterior, superior) to SimpleITK's (left, posterior, superior) and back.
_TURN: Final = np.diag([-1.0, -1.0, 1.0, 1.0])
#: Share of the brain's brightness that a voxel has at least: an inner 0 would be read as background.
_FLOOR: Final = 1e-3
#: Share of a voxel that must lie in the mask to have a value on the way back.
_COVERED: Final = 0.5


def to_itk(data: NDArray[Any], affine: Affine) -> sitk.Image:
    """Give an array as an image of SimpleITK.

    Args:
        data: axes x, y, z.
        affine: 4 x 4, from index to nibabel's millimetres; axes at right angles.

    Raises:
        ValueError: the axes are not at right angles.
    """
    matrix = _TURN @ affine
    edges = np.linalg.norm(matrix[:3, :3], axis=0)
    direction = matrix[:3, :3] / edges
    if not np.allclose(direction.T @ direction, np.eye(3), atol=1e-3):
        raise ValueError("its axes are not at right angles")
    # Headers hold rounded numbers; SimpleITK wants exact right angles.
    left, _, right = np.linalg.svd(direction)
    image: sitk.Image = sitk.GetImageFromArray(np.ascontiguousarray(np.transpose(data)))
    image.SetSpacing(edges.tolist())
    image.SetOrigin(matrix[:3, 3].tolist())
    image.SetDirection((left @ right).ravel().tolist())
    return image


def to_numpy(image: sitk.Image) -> NDArray[Any]:
    """Give the array of an image, axes x, y, z."""
    return np.ascontiguousarray(np.transpose(sitk.GetArrayViewFromImage(image)))


def affine_of(image: sitk.Image) -> Affine:
    """Give the 4 x 4 map from index to nibabel's millimetres."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return np.asarray(_TURN @ affine, dtype=np.float64)


def working_grid(anchor: sitk.Image) -> sitk.Image:
    """Give the empty 1 mm grid on an image's axes that covers its box.

    Args:
        anchor: axes nearest to left, posterior, superior.
    """
    size = [
        max(1, round(n * edge / WORKING_SPACING)) for n, edge in zip(anchor.GetSize(), anchor.GetSpacing(), strict=True)
    ]
    middle = np.array(anchor.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in anchor.GetSize()]))
    direction = np.array(anchor.GetDirection()).reshape(3, 3)
    origin = middle - direction @ ((np.array(size) - 1) / 2 * WORKING_SPACING)
    grid = sitk.Image(size, sitk.sitkUInt8)
    grid.SetSpacing([WORKING_SPACING] * 3)
    grid.SetOrigin(origin.tolist())
    grid.SetDirection(anchor.GetDirection())
    return grid


def wider_grid(grid: sitk.Image, images: Sequence[sitk.Image], transforms: Sequence[sitk.Transform]) -> sitk.Image:
    """Extend a working grid so that it covers the boxes of other sequences too; its voxels stay where they are.

    Args:
        images: sequences, on their own grids.
        transforms: of each, from points of the working grid to points of the sequence.
    """
    low, high = np.zeros(3), np.array(grid.GetSize(), dtype=np.float64) - 1
    for image, transform in zip(images, transforms, strict=True):
        back = transform.GetInverse()
        for corner in product(*((-0.5, n - 0.5) for n in image.GetSize())):
            point = back.TransformPoint(image.TransformContinuousIndexToPhysicalPoint(corner))
            index = np.array(grid.TransformPhysicalPointToContinuousIndex(point))
            low, high = np.minimum(low, index), np.maximum(high, index)
    first, last = np.floor(low).astype(int), np.ceil(high).astype(int)
    wider = sitk.Image((last - first + 1).tolist(), sitk.sitkUInt8)
    wider.SetSpacing(grid.GetSpacing())
    wider.SetDirection(grid.GetDirection())
    wider.SetOrigin(grid.TransformContinuousIndexToPhysicalPoint(first.astype(float).tolist()))
    return wider


def to_working(image: sitk.Image, transform: sitk.Transform, grid: sitk.Image) -> tuple[VolumeArray, MaskArray]:
    """Bring a sequence to the working grid.

    Args:
        transform: from points of the working grid to points of the sequence.

    Returns:
        float32 values, and where the sequence was scanned.
    """
    values = sitk.Resample(image, grid, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    seen = sitk.Resample(_ones(image), grid, transform, sitk.sitkNearestNeighbor, 0.0, sitk.sitkUInt8)
    return np.asarray(to_numpy(values), dtype=np.float32), np.asarray(to_numpy(seen) > 0)


def masked(volume: VolumeArray, brain: MaskArray, seen: MaskArray) -> VolumeArray:
    """Leave the brain where it was scanned; dark brain stays above 0."""
    inside = brain & seen
    if not inside.any():
        return np.zeros_like(volume)
    least = np.float32(_FLOOR * float(np.percentile(volume[inside], 99)))
    return np.where(inside, np.maximum(volume, max(least, np.float32(1e-6))), 0).astype(np.float32)


def to_reference(
    volume: VolumeArray, brain: MaskArray, grid: sitk.Image, reference: sitk.Image, transform: sitk.Transform
) -> VolumeArray:
    """Bring a working volume to the grid of a sequence: its value at each voxel's centre.

    It is divided by the mask on its way, so that the brain's edge is not darkened. An average through thick slices was
    worse: the inputs are such averages already.

    Args:
        volume: on the working grid, 0 outside the brain.
        brain: where it has values.
        grid: the working grid.
        transform: from points of the working grid to points of the sequence.

    Returns:
        float32 on the sequence's grid, 0 where less than half of a voxel is brain.
    """
    back = transform.GetInverse()
    values = _resampled_back(volume, grid, reference, back)
    shares = _resampled_back(brain.astype(np.float32), grid, reference, back)
    restored = np.zeros_like(values)
    np.divide(values, shares, out=restored, where=shares > _COVERED)
    return restored


def mask_to_working(mask: sitk.Image, transform: sitk.Transform, grid: sitk.Image) -> MaskArray:
    """Bring a mask to the working grid."""
    shares = sitk.Resample(sitk.Cast(mask, sitk.sitkFloat32), grid, transform, sitk.sitkLinear, 0.0)
    return np.asarray(to_numpy(shares) > _COVERED)


def coverage(brain: MaskArray, seen: MaskArray) -> float:
    """Give the share of the brain that was scanned."""
    total = int(np.count_nonzero(brain))
    return int(np.count_nonzero(brain & seen)) / total if total else 0.0


def _resampled_back(data: VolumeArray, grid: sitk.Image, reference: sitk.Image, back: sitk.Transform) -> VolumeArray:
    image: sitk.Image = sitk.GetImageFromArray(np.ascontiguousarray(np.transpose(data)))
    image.CopyInformation(grid)
    resampled = sitk.Resample(image, reference, back, sitk.sitkLinear, 0.0, sitk.sitkFloat32)
    return np.asarray(to_numpy(resampled), dtype=np.float32)


def _ones(image: sitk.Image) -> sitk.Image:
    ones: sitk.Image = sitk.Image(image.GetSize(), sitk.sitkUInt8) + 1
    ones.CopyInformation(image)
    return ones
