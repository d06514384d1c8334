"""Predict the intensities of the synthesised sequence from those of the present ones.

`IntensityPredictor` gives the mean and deviation that `app.preprocessing.normalization.denormalize` needs.
`IntensityPrior` gives the intensity code of networks with intensity encoding. Both are stored beside the weights.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.core.constants import MODALITIES, Modality
from app.core.sequence_subsets import subset_key
from app.core.types import MaskArray, VolumeArray
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
        logarithmic: whether logarithms of ratios stand for ratios, of inputs and target. A few exams have twice the
            ratio of most, and these are of one kind in all sequences. False in what version 0.1 wrote.
    """

    coefficients: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]]
    ratio_range: Mapping[Modality, tuple[float, float]]
    logarithmic: bool = False

    def predict(self, inputs: Mapping[Modality, Intensity], target: Modality) -> Intensity:
        """Predict mean and deviation of `target`, nothing clipped."""
        features, log_scale = intensity_features(inputs, self.logarithmic)
        to_ratio, to_log_std = self.coefficients[subset_key(inputs, target)]
        low, high = self.ratio_range[target]
        predicted = float(features @ np.asarray(to_ratio))
        ratio = min(max(math.exp(min(predicted, math.log(high))) if self.logarithmic else predicted, low), high)
        std = math.exp(float(features @ np.asarray(to_log_std)) + log_scale)
        return Intensity(mean=ratio * std, std=std)

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> IntensityPredictor:
        """Read the file that training writes.

        Raises:
            LookupError, TypeError, AttributeError: it is none.
        """
        coefficients = {k: (tuple(v[0]), tuple(v[1])) for k, v in form["coefficients"].items()}
        logarithmic = form.get("logarithmic", False)
        if not isinstance(logarithmic, bool):
            raise TypeError(f"logarithmic must be true or false, not {logarithmic!r}")
        ranges = {m: tuple(form["ratio_range"][m]) for m in MODALITIES}
        return cls(coefficients, ranges, logarithmic)


@dataclass(frozen=True)
class IntensityPrior:
    """Hold the normal distribution of each sequence's median brain intensity, scaled to 0 to 1.

    While training, the network gets the true median of its target. In use that is unknown, and a value of this prior
    takes its place: the mean, which scores best, or a sample.

    Source: the winner of BraSyn 2024 (Cho et al., section 2.1, table 1 and appendix A.1).

    Attributes:
        means, deviations: per sequence.
    """

    means: Mapping[Modality, float]
    deviations: Mapping[Modality, float]

    def value(self, target: Modality, choice: str, measured: Mapping[Modality, Intensity]) -> float:
        """Choose the target's median.

        Args:
            choice: `mean`, `sample` (clipped at two deviations), or a number from 0 to 1 as text.
            measured: the intensities of the exam's present sequences; they seed the sample, so that an exam gets the
                same one in any order and on any machine.
        """
        mean = self.means[target]
        if choice == "mean":
            return mean
        if choice != "sample":
            return float(choice)
        drawn = float(np.clip(_exam_random(target, measured).standard_normal(), -SAMPLE_CLIP, SAMPLE_CLIP))
        return min(max(mean + drawn * self.deviations[target], 0.0), 1.0)


#: Samples of a prior are held inside so many deviations (2 sigma of table 1).
SAMPLE_CLIP: Final = 2.0
#: The published priors, of 1,251 subjects of BraSyn 2024 (appendix A.1).
KAIST24_PRIOR: Final = IntensityPrior(
    means={"t1n": 0.4332, "t2w": 0.2498, "t2f": 0.3034, "t1c": 0.2404},
    deviations={"t1n": 0.1003, "t2w": 0.0626, "t2f": 0.1017, "t1c": 0.0623},
)


def brain_median(volume: VolumeArray, brain: MaskArray, intensity: Intensity) -> float:
    """Measure the median in the brain on the scale of intensity encoding: 0 is black, 1 the clip.

    Args:
        volume: in the file's units; brain: bool, same shape, not empty.
    """
    return min(float(np.median(volume[brain])), intensity.clip) / intensity.clip


def _exam_random(target: Modality, measured: Mapping[Modality, Intensity]) -> np.random.Generator:
    """Seed random numbers by what is known of an exam, to six digits."""
    text = " ".join(f"{m} {i.mean:.6g} {i.std:.6g} {i.clip:.6g}" for m, i in sorted(measured.items()))
    return np.random.default_rng(list(hashlib.sha256(f"{target} {text}".encode()).digest()))


def intensity_features(inputs: Mapping[Modality, Intensity], logarithmic: bool) -> tuple[NDArray[np.float64], float]:
    """Describe the inputs without their scale, and return the log of that scale.

    Returns:
        float64 (1 + 2 * number of inputs,): 1, ratios or their logarithms, relative log deviations, in challenge
        order; and the mean log deviation.
    """
    present = [inputs[m] for m in MODALITIES if m in inputs]
    logs = np.log([i.std for i in present])
    scale = float(logs.mean())
    ratios = np.array([i.mean / i.std for i in present])
    return np.concatenate([[1.0], np.log(ratios) if logarithmic else ratios, logs - scale]), scale
