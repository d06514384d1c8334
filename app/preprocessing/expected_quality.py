"""What a made sequence is expected to be worth, where nobody has the real one, and what an exam has that no other had.

Both are fitted to training subjects left out by turns (`app.training.fits.expected_quality`). SSIM and PSNR in the
brain are told by a trial on the exam itself (`app.inference.trial`), by how much the views disagree, and by statistics
of the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from app.core.constants import MODALITIES, Modality
from app.preprocessing.exam_statistics import CORRELATION, in_words

#: How far beyond all exams that were seen a statistic may lie, as a share of their range, before it is strange.
MARGIN: Final = 0.25
#: Most strange statistics that a sentence names.
_NAMED: Final = 3
#: What the estimates rest on (`features`).
FEATURES: Final = ("trial", "disagreement", "coarseness", "relation")
#: How many inputs the exams had to which the estimates were fitted.
INPUTS: Final = len(MODALITIES) - 1


@dataclass(frozen=True)
class Estimate:
    """State an expected score, and between which two it lay in nine of ten exams that were left out."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Expectation:
    """State what a made sequence is expected to be worth.

    Attributes:
        ssim: in the brain, as `evaluate` has it; None where it was fitted to nothing like it: other than three inputs,
            or one view alone.
        psnr: in the brain, dB.
        unlike: what the exam has that none had from which the model learnt; one part of a sentence each.
    """

    ssim: Estimate | None
    psnr: Estimate | None
    unlike: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Give the keys of a record, scores rounded."""
        form: dict[str, Any] = {}
        for name, estimate, digits in (("ssim_brain", self.ssim, 3), ("psnr_brain", self.psnr, 1)):
            if estimate is not None:
                values = (estimate.value, estimate.low, estimate.high)
                form[name] = dict(zip(("expected", "low", "high"), (round(v, digits) for v in values), strict=True))
        return form | ({"unlike": list(self.unlike)} if self.unlike else {})

    def warning(self, subject: str, model: str) -> str | None:
        """Say in one sentence what is strange; None where nothing is."""
        if not self.unlike:
            return None
        more = len(self.unlike) - _NAMED
        named = "; ".join(self.unlike[:_NAMED]) + (f"; and {more} more" if more > 0 else "")
        return f"{subject} is unlike the exams that {model} learnt from, look at the result with care: {named}."


def in_brief(form: Mapping[str, Any]) -> str:
    """Say for a caption what `Expectation.to_json` gave; empty where no score is expected."""
    if "ssim_brain" not in form:
        return ""
    ssim = form["ssim_brain"]
    return f"expected SSIM in the brain {ssim['expected']:.2f} ({ssim['low']:.2f} to {ssim['high']:.2f})"


def reaches(expected: float | None, least: float | None) -> bool:
    """Tell whether an expected score suffices.

    Args:
        expected: None where nobody knows.
        least: what is asked for; None where nothing is.
    """
    # Not "below": whatever is no number does not suffice.
    return least is None or (expected is not None and expected >= least)


@dataclass(frozen=True)
class LinearEstimate:
    """Tell one score from features: a constant for each sequence, and slopes that all share.

    Attributes:
        constants: per sequence to make.
        slopes: per name of `FEATURES`, per deviation of that feature.
        below, above: what lies between the estimate and the ends of its interval.
    """

    constants: Mapping[Modality, float]
    slopes: Mapping[str, float]
    below: float
    above: float

    def __call__(self, target: Modality, scores: Mapping[str, float], limits: tuple[float, float]) -> Estimate:
        """Estimate a score.

        Args:
            scores: standardised features.
            limits: between which the score lies.
        """
        value = self.constants[target] + sum(slope * scores[name] for name, slope in self.slopes.items())
        low, middle, high = (float(np.clip(v, *limits)) for v in (value - self.below, value, value + self.above))
        return Estimate(middle, low, high)


@dataclass(frozen=True)
class QualityModel:
    """Tell what is expected of a model's sequences.

    Attributes:
        exams: how many it was fitted to.
        ranges: per statistic the least and the largest value of these exams.
        centres, deviations: of each feature.
        ssim, psnr: the estimates.
        network_sha256: of the weights that are tried on an exam; the estimates hold with no others. None for any.
    """

    exams: int
    ranges: Mapping[str, tuple[float, float]]
    centres: Mapping[str, float]
    deviations: Mapping[str, float]
    ssim: LinearEstimate
    psnr: LinearEstimate
    network_sha256: str | None = None

    def is_for(self, sha256: str) -> bool:
        """Tell whether the estimates hold with these weights."""
        return self.network_sha256 in {None, sha256}

    def expect(
        self, statistics: Mapping[str, float], target: Modality, trial: float | None, disagreement: float | None
    ) -> Expectation:
        """Tell what is expected of one sequence.

        Args:
            statistics: `app.preprocessing.exam_statistics.exam_statistics` of the inputs.
            trial: SSIM of the inputs made of each other (`app.inference.trial`); None where that cannot be tried, or
                is not what the estimates were fitted to.
            disagreement: of the views (`app.inference.slicewise.view_fusion.FusedPrediction`).
        """
        unlike = self.unlike(statistics)
        if trial is None or disagreement is None:
            return Expectation(None, None, unlike)
        found = features(statistics, trial, disagreement)
        if not all(map(math.isfinite, found.values())):
            return Expectation(None, None, unlike)
        scores = {name: (found[name] - self.centres[name]) / self.deviations[name] for name in FEATURES}
        return Expectation(self.ssim(target, scores, (-1.0, 1.0)), self.psnr(target, scores, (0.0, math.inf)), unlike)

    def unlike(self, statistics: Mapping[str, float]) -> tuple[str, ...]:
        """Tell the strange statistics, the strangest first."""
        found: list[tuple[float, str]] = []
        for name, value in statistics.items():
            if name not in self.ranges:
                continue
            low, high = self.ranges[name]
            beyond = max(low - value, value - high) / max(high - low, 1e-9)
            if beyond > MARGIN:
                text = f"{in_words(name)} is {value:.4g} and was {low:.4g} to {high:.4g} in {self.exams} exams"
                found.append((beyond, text))
        return tuple(text for _, text in sorted(found, key=lambda pair: -pair[0]))

    def to_json(self) -> dict[str, Any]:
        """Give the form of its file."""
        return {
            "exams": self.exams,
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
            "centres": dict(self.centres),
            "deviations": dict(self.deviations),
            "ssim": _form_of(self.ssim),
            "psnr": _form_of(self.psnr),
            "network_sha256": self.network_sha256,
        }

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> QualityModel:
        """Read the form of its file.

        Raises:
            LookupError, TypeError, ValueError, AttributeError: a part lacks or is no number.
        """
        centres, deviations = ({n: _number(v) for n, v in form[key].items()} for key in ("centres", "deviations"))
        if {*centres} != {*FEATURES} or {*deviations} != {*FEATURES} or min(deviations.values()) <= 0:
            raise ValueError("features lack, or do not vary")
        ranges = {name: (_number(low), _number(high)) for name, (low, high) in form["ranges"].items()}
        sha256 = form.get("network_sha256")
        if not isinstance(sha256, str | None):
            raise TypeError("the checksum is no text")
        ssim, psnr = (_read(form[key]) for key in ("ssim", "psnr"))
        return cls(int(form["exams"]), ranges, centres, deviations, ssim, psnr, sha256)


def features(statistics: Mapping[str, float], trial: float, disagreement: float) -> dict[str, float]:
    """Give what the estimates rest on, by the names of `FEATURES`.

    `disagreement` and `coarseness` (of the coarsest input) as logarithms; `relation` is the mean size of the inputs'
    correlations.
    """
    coarse = [v for name, v in statistics.items() if name.endswith(" coarseness")]
    related = [abs(v) for name, v in statistics.items() if name.endswith(f" {CORRELATION}")]
    values = (trial, math.log(max(disagreement, 1e-6)), math.log(max(*coarse, 1.0)), float(np.mean(related)))
    return dict(zip(FEATURES, values, strict=True))


def _form_of(estimate: LinearEstimate) -> dict[str, Any]:
    return {"constants": dict(estimate.constants), "slopes": dict(estimate.slopes), "below": estimate.below,
            "above": estimate.above}  # fmt: skip


def _read(form: Mapping[str, Any]) -> LinearEstimate:
    constants = {m: _number(form["constants"][m]) for m in MODALITIES}
    slopes = {name: _number(form["slopes"][name]) for name in FEATURES}
    return LinearEstimate(constants, slopes, _number(form["below"]), _number(form["above"]))


def _number(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{number} is no finite number")
    return number
