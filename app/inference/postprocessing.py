"""The last steps in model space: check, clean, and stretch to a scan's spread."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.core.errors import CaseError
from app.core.types import MaskArray, VolumeArray
from app.preprocessing.normalization import Intensity

#: Share of the brain that may be not finite: a stray voxel is mended, a network that overflowed is not believed.
MAX_NOT_FINITE: Final = 0.001


def check_finite(volume: VolumeArray, foreground: MaskArray, name: str) -> None:
    """Refuse a prediction that is not finite in too much of the brain.

    Args:
        volume: normalized, float32, any shape.
        foreground: where the brain is, same shape.
        name: the model's, for the message.

    Raises:
        CaseError: more than a thousandth of the brain is not finite.
    """
    brain = volume[foreground]
    broken = brain.size - np.count_nonzero(np.isfinite(brain))
    if broken > MAX_NOT_FINITE * brain.size:
        share = 100 * broken / brain.size
        raise CaseError(
            f"model {name!r} made values that are not finite in {share:.1f} % of the brain; "
            "try --precision fp32, or another --model."
        )


def clean(volume: VolumeArray, foreground: MaskArray, intensity: Intensity, background: float) -> VolumeArray:
    """Clear the background, mend voxels that are not finite, and leave nothing below zero intensity.

    Args:
        volume: normalized, float32, any shape.
        foreground: the majority vote of the inputs, same shape (`app.preprocessing.foreground.vote_foreground`).
        intensity: of the target; its zero is at -mean / std.
        background: normalized value of background voxels.

    Returns:
        A new array; a voxel that was not finite gets the lowest value.
    """
    lowest = np.float32(-intensity.mean / intensity.std)
    cleaned = np.where(np.isfinite(volume), volume, lowest)
    np.maximum(cleaned, lowest, out=cleaned)
    return np.where(foreground, cleaned, np.float32(background))


def stretch(volume: VolumeArray, foreground: MaskArray, contrast: float) -> VolumeArray:
    """Bring the brain part of the way to mean 0 and deviation 1.

    A scan's z-scores have both by definition. A network averages over what it cannot know, so its prediction varies
    less than a scan does.

    Args:
        volume: normalized, float32, any shape. A voxel that is not finite counts for no other.
        foreground: where the brain is, same shape.
        contrast: share of the way: 0 changes nothing, 1 gives deviation 1.

    Returns:
        The volume itself where there is nothing to do (no contrast asked, a constant brain), else a new array.
    """
    if contrast == 0:
        return volume
    brain = _finite(volume[foreground])
    if not brain.size:
        return volume
    mean, std = float(brain.mean(dtype=np.float64)), float(brain.std(dtype=np.float64))
    if not std > 1e-6:
        return volume
    return np.asarray((volume - np.float32(contrast * mean)) / np.float32(std**contrast), dtype=np.float32)


def lift_highlights(volume: VolumeArray, foreground: MaskArray, factor: float) -> VolumeArray:
    """Multiply how much brighter than the brain's median each brighter voxel is.

    What is brightest varies most between people (vessels, enhancement, fluid), so a network that averages makes it too
    dark, more so than the rest. The challenge scales each volume to its 99.5th percentile: the whole brain is then too
    bright.

    Args:
        volume: normalized, float32, any shape. A voxel that is not finite counts for no other.
        foreground: where the brain is, same shape.
        factor: 1 changes nothing.

    Returns:
        The volume itself where there is nothing to do, else a new array.
    """
    if factor == 1:
        return volume
    brain = _finite(volume[foreground])
    if not brain.size:
        return volume
    median = np.float32(np.median(brain))
    return np.where(foreground & (volume > median), median + np.float32(factor) * (volume - median), volume)


def _finite(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values[np.isfinite(values)]
