"""Align the sequences of one exam rigidly: whole heads, whatever their grids.

Patients move between sequences, and one grid in two headers proves nothing. Mutual information (Mattes) needs no
common contrast. Two starts and the mirrored image show where an alignment cannot be trusted.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

#: Edge of a voxel of the image that stays, and smallest edge of the one that moves, in millimetres.
_FIXED_SPACING: Final = 2.0
_MOVING_SPACING: Final = 0.9
_BINS: Final = 32
#: Per level: reduction, blur in millimetres, share of the voxels that count.
_SHRINK: Final = (4, 2, 1)
_SIGMAS: Final = (4.0, 2.0, 1.0)
_SHARES: Final = (0.5, 0.3, 0.2)
_STEPS: Final = 200
#: Distance from the centre at which displacements are told: the outer brain.
_RADIUS: Final = 70.0
#: Starts closer than this are one.
_SAME_START: Final = 1.0
_ALIGNING: Final = threading.Lock()
#: Percentile of the content above which values are cut.
_CLIP: Final = 99.5


@dataclass(frozen=True)
class RigidAlignment:
    """Hold how one image lies in the space of another.

    Attributes:
        transform: from points of the fixed image to points of the moving one, in millimetres L, P, S.
        before, after: mutual information by the headers and after it, negative; lower is better.
        spread: millimetres between the ends of both starts, at the outer brain.
        mirrored: mutual information of the image with right and left exchanged.
    """

    transform: sitk.Transform
    before: float
    after: float
    spread: float
    mirrored: float

    @property
    def moved(self) -> float:
        """Give the largest displacement of the outer brain in millimetres."""
        return _distance(self.transform, sitk.Transform(3, sitk.sitkIdentity), _centre_of(self.transform))

    @property
    def degrees(self) -> float:
        """Give the angle of the rotation."""
        matrix = np.array(sitk.Euler3DTransform(self.transform).GetMatrix()).reshape(3, 3)
        return math.degrees(math.acos(min(1.0, max(-1.0, (float(np.trace(matrix)) - 1) / 2))))


def register(fixed: sitk.Image, moving: sitk.Image) -> RigidAlignment:
    """Align an image with another of the same head.

    The same images give the same numbers: every so many voxels count, none is drawn.

    Args:
        fixed, moving: float32, with skull or both without, three axes, any grids.

    Raises:
        ValueError: the images do not overlap at all.
    """
    with _one_thread():
        still, other = _reduced(fixed, _FIXED_SPACING, every=True), _reduced(moving, _MOVING_SPACING)
        ends = [_optimize(still, other, start) for start in _starts(still, other)]
        best = min(ends, key=lambda end: end[1])
        return RigidAlignment(
            transform=best[0],
            before=_information(still, other, sitk.Transform(3, sitk.sitkIdentity)),
            after=best[1],
            spread=max(_distance(best[0], end[0], _middle(still)) for end in ends),
            mirrored=_optimize(still, _mirrored(other), _start(still, _middle(still) * 0))[1],
        )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run ITK on one thread: sums of several differ in their last digits from run to run.

    The number is the process's: one alignment at a time.
    """
    with _ALIGNING:
        before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
        try:
            yield
        finally:
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _reduced(image: sitk.Image, spacing: float, every: bool = False) -> sitk.Image:
    """Cut bright outliers, and bring an image to coarser voxels.

    Args:
        spacing: edge in millimetres; finer axes get it, and all axes where `every` is set.
    """
    values = sitk.GetArrayViewFromImage(image)
    content = values[values > 0]
    limit = float(np.percentile(content, _CLIP)) if content.size else 1.0
    clipped: sitk.Image = sitk.Clamp(sitk.Cast(image, sitk.sitkFloat32), upperBound=limit)
    edges = [spacing if every else max(edge, spacing) for edge in image.GetSpacing()]
    if np.allclose(edges, image.GetSpacing()):
        return clipped
    size = [
        max(1, round(n * old / new)) for n, old, new in zip(image.GetSize(), image.GetSpacing(), edges, strict=True)
    ]
    # The middle of the first voxel moves, so that the box stays.
    shift = [(new - old) / 2 for new, old in zip(edges, image.GetSpacing(), strict=True)]
    direction = np.array(image.GetDirection()).reshape(3, 3)
    origin = np.array(image.GetOrigin()) + direction @ np.array(shift)
    blurred = sitk.SmoothingRecursiveGaussian(
        clipped,
        [max(0.4 * math.sqrt(max(n**2 - o**2, 0)), 1e-3) for n, o in zip(edges, image.GetSpacing(), strict=True)],
    )
    identity = sitk.Transform(3, sitk.sitkIdentity)
    reduced: sitk.Image = sitk.Resample(
        blurred, size, identity, sitk.sitkLinear, origin.tolist(), edges, image.GetDirection(), 0.0
    )
    return reduced


def _starts(fixed: sitk.Image, moving: sitk.Image) -> list[sitk.Euler3DTransform]:
    """Start from the headers, and with both boxes on one another unless that is the same."""
    between = _middle(moving) - _middle(fixed)
    starts = [_start(fixed, between * 0)]
    if float(np.linalg.norm(between)) > _SAME_START:
        starts.append(_start(fixed, between))
    return starts


def _start(fixed: sitk.Image, shift: NDArray[np.float64]) -> sitk.Euler3DTransform:
    transform = sitk.Euler3DTransform()
    transform.SetCenter(_middle(fixed).tolist())
    transform.SetTranslation(shift.tolist())
    return transform


def _method() -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetInterpolator(sitk.sitkLinear)
    return method


def _optimize(fixed: sitk.Image, moving: sitk.Image, start: sitk.Euler3DTransform) -> tuple[sitk.Transform, float]:
    """Improve a start; give where it ends, and the mutual information there over all voxels."""
    method = _method()
    method.SetMetricSamplingPercentagePerLevel(list(_SHARES), 1)
    method.SetShrinkFactorsPerLevel(list(_SHRINK))
    method.SetSmoothingSigmasPerLevel(list(_SIGMAS))
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-3, numberOfIterations=_STEPS, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetInitialTransform(start, inPlace=False)
    try:
        found = sitk.Euler3DTransform(method.Execute(fixed, moving).GetNthTransform(0))
    except RuntimeError:
        # The images do not overlap from here.
        return start, 0.0
    return found, _information(fixed, moving, found)


def _information(fixed: sitk.Image, moving: sitk.Image, transform: sitk.Transform) -> float:
    """Measure mutual information, negative; 0 where the images do not overlap."""
    method = _method()
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInitialTransform(sitk.Transform(transform), inPlace=False)
    try:
        return float(method.MetricEvaluate(fixed, moving))
    except RuntimeError:
        return 0.0


def _mirrored(image: sitk.Image) -> sitk.Image:
    """Exchange right and left about the middle of the image's box; the grid stays."""
    values = sitk.GetArrayFromImage(image)
    direction = np.abs(np.array(image.GetDirection()).reshape(3, 3))
    across = int(direction[0].argmax())
    other: sitk.Image = sitk.GetImageFromArray(np.flip(values, axis=2 - across))
    other.CopyInformation(image)
    return other


def _middle(image: sitk.Image) -> NDArray[np.float64]:
    """Give the middle of the image's box in millimetres."""
    index = [(n - 1) / 2 for n in image.GetSize()]
    return np.array(image.TransformContinuousIndexToPhysicalPoint(index))


def _centre_of(transform: sitk.Transform) -> NDArray[np.float64]:
    return np.array(sitk.Euler3DTransform(transform).GetCenter())


def _distance(one: sitk.Transform, two: sitk.Transform, centre: NDArray[np.float64]) -> float:
    """Measure how far apart two transforms bring points of the outer brain, at most."""
    offsets = [sign * _RADIUS * np.eye(3)[axis] for axis in range(3) for sign in (-1, 1)]
    points = [(centre + offset).tolist() for offset in offsets]
    pairs = [(np.array(one.TransformPoint(p)), np.array(two.TransformPoint(p))) for p in points]
    return max(float(np.linalg.norm(a - b)) for a, b in pairs)
