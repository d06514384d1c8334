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


@dataclass(frozen=True)
class MedianPrior:
    """What a network with an intensity code is told of the sequence that it makes: its median score in the brain.

    After the BraSyn 2024 winner, whose code is the median brain intensity of the target. There it is an intensity
    scaled to [0, 1]; here a network sees z-scores, so it is told the median of the z-scores: where the middle of the
    brain lies beside its mean, in deviations. The real one cannot be known, so that in training as in use the network
    is told what can: the mean over the training subjects, or what the present sequences predict.

    Attributes:
        means: per target, over the training subjects.
        coefficients: per `subset_key` [constant, one per feature of `median_features`]; empty where the mean is told.
        span: per target, lowest and highest median seen in training; predictions are held inside.
    """

    means: Mapping[Modality, float]
    coefficients: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    span: Mapping[Modality, tuple[float, float]] = field(default_factory=dict)

    def predict(
        self, inputs: Mapping[Modality, Intensity], medians: Mapping[Modality, float], target: Modality
    ) -> float:
        """The target's median score.

        Args:
            inputs, medians: of each present sequence, how it becomes scores and its median score in the brain; not
                looked at where the mean is told.
        """
        if not self.coefficients:
            return self.means[target]
        row = np.asarray(self.coefficients[subset_key(inputs, target)])
        low, high = self.span[target]
        return min(max(float(median_features(inputs, medians) @ row), low), high)

    def to_json(self) -> dict[str, Any]:
        """The keys of a manifest entry; `from_json` is the inverse."""
        form: dict[str, Any] = {"target_medians": dict(self.means)}
        if self.coefficients:
            rows = {k: list(v) for k, v in self.coefficients.items()}
            form["median_predictor"] = {"coefficients": rows, "span": {m: list(s) for m, s in self.span.items()}}
        return form

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> MedianPrior | None:
        """Reads a manifest entry; None where it states no medians.

        Raises:
            WeightsError: they are not those of all sequences.
        """
        if "target_medians" not in form:
            return None
        predictor = form.get("median_predictor", {"coefficients": {}, "span": {}})
        try:
            return cls(
                {m: float(form["target_medians"][m]) for m in MODALITIES},
                {k: tuple(map(float, v)) for k, v in predictor["coefficients"].items()},
                {m: (float(low), float(high)) for m, (low, high) in predictor["span"].items()},
            )
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"the manifest's medians are damaged ({error}); fetch it again.") from None


def median_features(inputs: Mapping[Modality, Intensity], medians: Mapping[Modality, float]) -> NDArray[np.float64]:
    """Float64 (1 + 3 * number of inputs,): those of `intensity_features`, then the medians, in challenge order."""
    return np.concatenate([intensity_features(inputs)[0], [medians[m] for m in MODALITIES if m in inputs]])


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
