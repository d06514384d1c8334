"""Predict the intensities of the synthesised sequence from those of the present ones.

`IntensityPredictor` gives the mean and deviation that `app.preprocessing.normalization.denormalize` needs.
`MedianPredictor` gives the intensity code of networks with intensity conditioning. Both are stored beside the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.core.constants import MODALITIES, Modality
from app.core.sequence_subsets import subset_key
from app.preprocessing.normalization import Intensity


@dataclass(frozen=True)
class IntensityPredictor:
    """Predict a missing sequence's brain mean and deviation from those of the present ones.

    The official score forgives a wrong scale but not a wrong zero, so the ratio mean / std must be right.
    Both outputs scale with the inputs: doubling every input doubles the prediction.

    Attributes:
        coefficients: per `subset_key`, two rows (ratio; log of deviation over the inputs' geometric mean deviation),
            each [constant, one per input ratio, one per input log deviation relative to that geometric mean].
        ratio_range: lowest and highest ratio per target seen in training; predictions are held inside.
    """

    coefficients: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]
    ratio_range: Mapping[Modality, tuple[float, float]]

    def predict(self, inputs: Mapping[Modality, Intensity], target: Modality) -> Intensity:
        """Predict mean and deviation of `target`, nothing clipped."""
        features, log_scale = intensity_features(inputs)
        to_ratio, to_log_std = self.coefficients[subset_key(inputs, target)]
        low, high = self.ratio_range[target]
        ratio = min(max(float(features @ np.asarray(to_ratio)), low), high)
        std = math.exp(float(features @ np.asarray(to_log_std)) + log_scale)
        return Intensity(mean=ratio * std, std=std)

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> IntensityPredictor:
        """Read the file that training writes."""
        coefficients = {k: (tuple(v[0]), tuple(v[1])) for k, v in form["coefficients"].items()}
        return cls(coefficients, {m: tuple(form["ratio_range"][m]) for m in MODALITIES})


@dataclass(frozen=True)
class MedianPredictor:
    """Predict the intensity code of a network: the target's normalized median in the brain.

    Source: the BraSyn 2024 winner, whose code is the median brain intensity of the target, scaled to [0, 1]. Networks
    here see z-scored voxels, so the code is the median of those: the middle of the brain against its mean, in
    deviations. The real median is unknown in use. So training and use both take a known one: the mean over the training
    subjects, or a prediction from the present sequences.

    Attributes:
        means: per target, over the training subjects.
        coefficients: per `subset_key` [constant, one per feature of `median_features`]; empty where the mean is used.
        span: per target, lowest and highest median seen in training; predictions are held inside.
    """

    means: Mapping[Modality, float]
    coefficients: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    span: Mapping[Modality, tuple[float, float]] = field(default_factory=dict)

    def predict(
        self, inputs: Mapping[Modality, Intensity], medians: Mapping[Modality, float], target: Modality
    ) -> float:
        """Predict the target's normalized median.

        Args:
            inputs: intensity parameters of each present sequence.
            medians: normalized median in the brain of each present sequence. Both are unused where the mean is used.
        """
        if not self.coefficients:
            return self.means[target]
        row = np.asarray(self.coefficients[subset_key(inputs, target)])
        low, high = self.span[target]
        return min(max(float(median_features(inputs, medians) @ row), low), high)


def median_features(inputs: Mapping[Modality, Intensity], medians: Mapping[Modality, float]) -> NDArray[np.float64]:
    """Append the medians, in challenge order, to `intensity_features`; float64 (1 + 3 * inputs,)."""
    return np.concatenate([intensity_features(inputs)[0], [medians[m] for m in MODALITIES if m in inputs]])


def intensity_features(inputs: Mapping[Modality, Intensity]) -> tuple[NDArray[np.float64], float]:
    """Describe the inputs without their scale, and return the log of that scale.

    Returns:
        float64 (1 + 2 * number of inputs,): 1, ratios, relative log deviations, in challenge order; and the mean
        log deviation.
    """
    present = [inputs[m] for m in MODALITIES if m in inputs]
    logs = np.log([i.std for i in present])
    scale = float(logs.mean())
    return np.concatenate([[1.0], [i.mean / i.std for i in present], logs - scale]), scale
