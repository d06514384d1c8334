"""Bring intensities to a model's scale and back: percentile clip, linear scaling, and the exact inverse.

`measure` finds the parameters of a sequence; `normalize` and `denormalize` apply them and are pure. The schemes:

- `volume`: clip at the volume's own 99.5th percentile, z-score over its own brain. The parameters of the synthesised
  sequence are predicted from those of the inputs (`app.preprocessing.target_intensity`).
- `range`: linear scaling of 0 to the volume's own 99.5th percentile to [-1, 1], for intensity encoding (section 2.1 of
  the BraSyn 2024 winner, which does not say what becomes 1). The percentile of the synthesised one is predicted.
- `dataset`: constants of a training set, as the 2025 BraSyn entry has them (`app.training.data.normalization_fit`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from app.core.constants import MODALITIES, Modality
from app.core.types import MaskArray, VolumeArray

#: Normalized value of background voxels and of every voxel of a missing sequence, in all that is trained here.
BACKGROUND: Final = -1.0
Scheme = Literal["volume", "range", "dataset"]


@dataclass(frozen=True)
class Intensity:
    """Hold the parameters of one sequence: `normalized = (min(value, clip) - mean) / std`.

    All three in the file's own units. A `clip` of infinity clips nothing.
    """

    mean: float
    std: float
    clip: float = math.inf


#: Constants of the 2025 BraSyn entry (dataset-wide, over its training subjects).
BRASYN25_INTENSITIES: Final[dict[Modality, Intensity]] = {
    "t1c": Intensity(mean=1066.3375, std=1301.7006, clip=8664.0),
    "t1n": Intensity(mean=781.2247, std=944.3418, clip=7315.0),
    "t2f": Intensity(mean=510.9852, std=769.4159, clip=8842.0),
    "t2w": Intensity(mean=673.4393, std=804.3864, clip=8233.0),
}


@dataclass(frozen=True)
class Normalization:
    """Name the scheme that a model was trained with.

    Attributes:
        scheme: `volume`, `range` or `dataset`.
        background: normalized value of background voxels and of every voxel of a missing sequence; None normalizes
            background voxels like any other.
        percentile: of the non-zero voxels, where `volume` and `range` clip; 100 clips nothing.
        intensities: the constants of `dataset`.
    """

    scheme: Scheme
    background: float | None = -1.0
    percentile: float = 99.5
    intensities: Mapping[Modality, Intensity] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scheme == "dataset" and set(self.intensities) != set(MODALITIES):
            raise ValueError("the scheme `dataset` needs the constants of all four sequences")

    def to_json(self) -> dict[str, Any]:
        """Give the plain values, for comparison with those of a cache."""
        form: dict[str, Any] = {"scheme": self.scheme, "background": self.background}
        if self.scheme != "dataset":
            form["percentile"] = self.percentile
        else:
            form["intensities"] = {m: [i.mean, i.std, i.clip] for m, i in self.intensities.items()}
        return form


def measure(volume: VolumeArray, modality: Modality, normalization: Normalization) -> Intensity:
    """Measure the intensity parameters of one sequence.

    Args:
        volume: float32, any shape, background 0, at least one positive voxel.
    """
    if normalization.scheme == "dataset":
        return normalization.intensities[modality]
    brain = volume[volume > 0]
    clip = float(np.percentile(brain, normalization.percentile))
    if normalization.scheme == "range":
        return Intensity(mean=clip / 2, std=clip / 2, clip=clip)
    np.minimum(brain, clip, out=brain)
    mean = float(brain.mean(dtype=np.float64))
    # In place, so that no float64 copy of the brain is ever held; the sums are float64 all the same.
    brain -= np.float32(mean)
    np.square(brain, out=brain)
    std = float(np.sqrt(brain.mean(dtype=np.float64)))
    # A two-valued image can be constant below its percentile; all voxels are then normalized to 0.
    return Intensity(mean=mean, std=std if std > 1e-6 * mean else max(mean, 1e-6), clip=clip)


def normalize(volume: VolumeArray, intensity: Intensity, background: float | None) -> VolumeArray:
    """Normalize intensities to float32; voxels that are 0 become `background` (see `Normalization`)."""
    normalized = np.minimum(volume, np.float32(intensity.clip))
    normalized -= np.float32(intensity.mean)
    normalized /= np.float32(intensity.std)
    if background is not None:
        normalized[volume <= 0] = background
    return normalized


def denormalize(normalized: VolumeArray, intensity: Intensity, foreground: MaskArray) -> VolumeArray:
    """Invert `normalize` inside `foreground`; 0 outside, never negative."""
    values = normalized * np.float32(intensity.std)
    values += np.float32(intensity.mean)
    np.maximum(values, 0, out=values)
    values[~foreground] = 0
    return values


def rescale_as_scored(volume: VolumeArray) -> NDArray[np.float64]:
    """Rescale a volume as the challenge scores it, clipped to its own percentiles.

    Returns:
        float64 in [0, 1], same shape; all 0 for a constant volume.
    """
    values = np.asarray(volume, dtype=np.float64)
    low, high = np.percentile(values, [0.5, 99.5])
    low = max(low, 0.0)
    if high <= low:
        return np.zeros_like(values)
    return np.asarray((np.clip(values, low, high) - low) / (high - low))
