"""Fits what a model's sequences are expected to be worth, on exams that its training had left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError
from app.preprocessing.expected_quality import FEATURES, LinearEstimate, QualityModel, features

#: Penalty on the slopes, as so many rows of features one deviation away from their mean.
RIDGE: Final = 1.0
#: Share of left-out exams that an interval holds.
COVERED: Final = 0.9


@dataclass(frozen=True)
class LeftOut:
    """Hold one sequence of an exam, made by a network that had not seen it, and its scores.

    Attributes:
        statistics: of the three inputs.
        trial: SSIM of the inputs made of each other.
        disagreement: of the views.
        ssim, psnr: in the brain.
    """

    subject: str
    target: Modality
    statistics: Mapping[str, float]
    trial: float
    disagreement: float
    ssim: float
    psnr: float

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> LeftOut:
        """Read what `dataclasses.asdict` gave."""
        return cls(**form)


def fit_quality(
    rows: Sequence[LeftOut], exams: Sequence[Mapping[str, float]], network_sha256: str | None = None
) -> QualityModel:
    """Fit both estimates and the ranges.

    The constants and slopes are those of least squares with a ridge on the slopes. An interval's ends are percentiles
    of what is left where each subject in turn is left out of the fit.

    Args:
        rows: of at least three subjects, and of each sequence.
        exams: statistics of the complete exams that the model learnt from.
        network_sha256: of the weights that will be tried on exams.

    Raises:
        UsageError: there are too few.
    """
    subjects = sorted({row.subject for row in rows})
    if len(subjects) < 3 or {row.target for row in rows} != set(MODALITIES) or not exams:
        raise UsageError("the expected quality needs three subjects or more, each sequence of them made.")
    table, centres, deviations = _table(rows)
    return QualityModel(
        exams=len(exams),
        ranges=ranges_of(exams),
        centres=dict(zip(FEATURES, centres.tolist(), strict=True)),
        deviations=dict(zip(FEATURES, deviations.tolist(), strict=True)),
        ssim=_estimate(rows, table, np.array([row.ssim for row in rows])),
        psnr=_estimate(rows, table, np.array([row.psnr for row in rows])),
        network_sha256=network_sha256,
    )


def ranges_of(exams: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Find the least and the largest value of each statistic."""
    names = sorted({name for exam in exams for name in exam})
    values = {name: [exam[name] for exam in exams if name in exam] for name in names}
    return {name: (min(found), max(found)) for name, found in values.items()}


def left_out_estimates(
    rows: Sequence[LeftOut], observed: NDArray[np.float64], used: Sequence[str] = FEATURES
) -> NDArray[np.float64]:
    """Estimate each row's score by a fit to the rows of all other subjects.

    Args:
        observed: the scores.
        used: names of features; none leaves the mean of each sequence.
    """
    table, _, _ = _table(rows)
    columns = [*range(len(MODALITIES)), *(len(MODALITIES) + FEATURES.index(name) for name in used)]
    chosen, subjects = table[:, columns], np.array([row.subject for row in rows])
    estimates = np.empty_like(observed)
    for subject in np.unique(subjects):
        out = subjects == subject
        estimates[out] = chosen[out] @ _solve(chosen[~out], observed[~out])
    return estimates


def _table(rows: Sequence[LeftOut]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Columns of the sequences and of standardised features, with the features' means and deviations."""
    found = [features(row.statistics, row.trial, row.disagreement) for row in rows]
    raw = np.array([[values[name] for name in FEATURES] for values in found])
    centres, deviations = raw.mean(axis=0), np.maximum(raw.std(axis=0), 1e-6)
    return np.concatenate([_constants(rows), (raw - centres) / deviations], axis=1), centres, deviations


def _constants(rows: Sequence[LeftOut]) -> NDArray[np.float64]:
    """A column of 0 and 1 for each sequence."""
    return np.array([[float(row.target == m) for m in MODALITIES] for row in rows])


def _estimate(rows: Sequence[LeftOut], table: NDArray[np.float64], observed: NDArray[np.float64]) -> LinearEstimate:
    solution = _solve(table, observed)
    rest = observed - left_out_estimates(rows, observed)
    low, high = np.percentile(rest, [50 * (1 - COVERED), 50 * (1 + COVERED)])
    count = len(MODALITIES)
    return LinearEstimate(
        constants=dict(zip(MODALITIES, solution[:count].tolist(), strict=True)),
        slopes=dict(zip(FEATURES, solution[count:].tolist(), strict=True)),
        below=max(-float(low), 0.0),
        above=max(float(high), 0.0),
    )


def _solve(table: NDArray[np.float64], observed: NDArray[np.float64]) -> NDArray[np.float64]:
    count = len(MODALITIES)
    penalty = np.diag([0.0] * count + [RIDGE] * (table.shape[1] - count))
    # The least-norm solution, since a fold may lack a sequence.
    return np.asarray(np.linalg.lstsq(table.T @ table + penalty, table.T @ observed, rcond=None)[0])
