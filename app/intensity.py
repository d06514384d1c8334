"""What a model knows of intensities: its normalisation scheme, and how bright the sequence it makes should be.

These are parameters, stored beside the weights; `app.preprocess` measures and applies them.

Two schemes (see `Normalization`):

- `volume`: clip at the volume's own 99.5th percentile, z-score over its own brain; the synthesised sequence's
  mean and deviation are predicted from those of the inputs.
- `dataset`: constants of the training set, as published by the 2025 BraSyn entry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from app.constants import MODALITIES, Modality, subset_key
from app.errors import WeightsError


@dataclass(frozen=True)
class Intensity:
    """How one sequence's intensities relate to scores: `score = (min(value, clip) - mean) / std`.

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
    """The scheme a model was trained with.

    Attributes:
        scheme: `volume` or `dataset`.
        background: score of background voxels and of every voxel of a missing sequence; None gives
            background voxels the score that zero intensity has.
        percentile: of the non-zero voxels, where `volume` clips.
        intensities: the constants of `dataset`.
    """

    scheme: Literal["volume", "dataset"]
    background: float | None = -1.0
    percentile: float = 99.5
    intensities: Mapping[Modality, Intensity] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The manifest's form; `from_json` is the inverse."""
        form: dict[str, Any] = {"scheme": self.scheme, "background": self.background}
        if self.scheme == "volume":
            form["percentile"] = self.percentile
        else:
            form["intensities"] = {m: [i.mean, i.std, i.clip] for m, i in self.intensities.items()}
        return form

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> Normalization:
        """Reads the manifest's form.

        Raises:
            WeightsError: an unknown scheme, or `dataset` without all four constants.
        """
        scheme = form.get("scheme")
        if scheme == "volume":
            return cls("volume", form["background"], float(form["percentile"]))
        if scheme == "dataset" and set(form.get("intensities", {})) == set(MODALITIES):
            values = {m: Intensity(*map(float, form["intensities"][m])) for m in MODALITIES}
            return cls("dataset", form["background"], intensities=values)
        raise WeightsError(f"the manifest names a normalisation that is not known here ({scheme!r}); update Tetrad.")


@dataclass(frozen=True)
class IntensityPredictor:
    """Predicts a missing sequence's brain mean and deviation from those of the present ones.

    The official score forgives a wrong scale but not a wrong zero, so what must be right is the ratio mean / std.
    Both outputs scale with the inputs: doubling every input doubles the prediction.

    Attributes:
        coefficients: per `subset_key`, two rows (ratio; log of deviation over the inputs' geometric mean deviation),
            each [constant, one per input ratio, one per input log deviation relative to that geometric mean].
        ratio_range: lowest and highest ratio per target seen in training; predictions are held inside.
    """

    coefficients: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]
    ratio_range: Mapping[Modality, tuple[float, float]]

    def predict(self, inputs: Mapping[Modality, Intensity], target: Modality) -> Intensity:
        """Mean and deviation of `target`, nothing clipped."""
        features, log_scale = intensity_features(inputs)
        to_ratio, to_log_std = self.coefficients[subset_key(inputs, target)]
        low, high = self.ratio_range[target]
        ratio = min(max(float(features @ np.asarray(to_ratio)), low), high)
        std = math.exp(float(features @ np.asarray(to_log_std)) + log_scale)
        return Intensity(mean=ratio * std, std=std)

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> IntensityPredictor:
        """Reads the file that training writes."""
        coefficients = {k: (tuple(v[0]), tuple(v[1])) for k, v in form["coefficients"].items()}
        return cls(coefficients, {m: tuple(form["ratio_range"][m]) for m in MODALITIES})


def intensity_features(inputs: Mapping[Modality, Intensity]) -> tuple[NDArray[np.float64], float]:
    """Scale-free description of the inputs, and the log of the scale that was taken out.

    Returns:
        float64 (1 + 2 * number of inputs,): 1, ratios, relative log deviations, in challenge order; and the mean
        log deviation.
    """
    present = [inputs[m] for m in MODALITIES if m in inputs]
    logs = np.log([i.std for i in present])
    scale = float(logs.mean())
    return np.concatenate([[1.0], [i.mean / i.std for i in present], logs - scale]), scale
