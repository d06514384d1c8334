"""What a model knows of intensities: its normalisation scheme, and how bright the sequence it makes should be.

These are parameters, stored beside the weights; `app.preprocessing.normalization` measures and applies them.

Two schemes (see `Normalization`):

- `volume`: clip at the volume's own 99.5th percentile, z-score over its own brain; the synthesised sequence's
  mean and deviation are predicted from those of the inputs.
- `dataset`: constants of the training set, as published by the 2025 BraSyn entry.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.core.constants import MODALITIES, Modality, subset_key
from app.preprocessing.normalization import Intensity


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
class MedianPredictor:
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
