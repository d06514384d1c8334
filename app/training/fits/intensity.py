"""Fits the voxel-wise regression and the intensity predictor on a folder of complete subjects."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError
from app.core.sequence_subsets import subset_key, subsets
from app.core.types import VolumeArray
from app.data.cases import Case
from app.data.discovery import scan
from app.data.loading import load_complete
from app.networks.voxelwise_regression import monomials
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import Intensity, Normalization, measure, normalize
from app.preprocessing.target_intensity import IntensityPrior, intensity_features
from app.registry.lineage import TrainingRecord
from app.registry.manifest import Entry, write_entry
from app.registry.spec import RegressionSpec
from app.training.data.cache import CachedSubject

log = logging.getLogger(__name__)

#: What the regression is fitted on and applied to: background voxels keep the score of zero intensity.
NORMALIZATION = Normalization("volume", background=None)
INPUT_RANGE = (-5.0, 8.0)
#: Penalty on the intensity predictor's slopes (inputs standardised), for deviations. With 31 subjects a strong one errs
#: least, so predictions stay close to the training mean.
RIDGE: Final = 100.0
#: For the ratio of each target, chosen on training subjects left out by turns: a T1's follows the other T1's.
RATIO_RIDGES: Final[Mapping[Modality, float]] = {"t1c": 3.0, "t1n": 3.0, "t2f": RIDGE, "t2w": RIDGE}
#: Chosen in the same way by SSIM inside the brain (docs/RESULTS.md).
CONTRAST = 0.5
#: Every voxel adds little beyond every third.
STRIDE = 3


class RegressionFit:
    """Normal equations of all 28 regressions, summed subject by subject; each subject weighs the same."""

    def __init__(self) -> None:
        self._grams: dict[str, NDArray[np.float64]] = {}
        self._rights: dict[str, NDArray[np.float64]] = {}
        self.subjects: list[str] = []
        self.intensities: list[dict[Modality, Intensity]] = []

    def add(self, subject: str, volumes: dict[Modality, VolumeArray]) -> None:
        """Add one complete subject: four float32 arrays of one shape, background 0."""
        intensities = {m: measure(v, m, NORMALIZATION) for m, v in volumes.items()}
        brain = vote_foreground(volumes)
        volumes_in_brain = {
            m: np.clip(normalize(volumes[m], intensities[m], None)[brain][::STRIDE], *INPUT_RANGE) for m in MODALITIES
        }
        for inputs in {i for i, _ in subsets()}:
            terms = monomials(np.stack([volumes_in_brain[m] for m in inputs])).astype(np.float64)
            gram = terms @ terms.T / terms.shape[1]
            for target in (m for m in MODALITIES if m not in inputs):
                key = subset_key(inputs, target)
                right = terms @ volumes_in_brain[target] / terms.shape[1]
                self._grams[key] = self._grams.get(key, 0) + gram
                self._rights[key] = self._rights.get(key, 0) + right
        self.subjects.append(subject)
        self.intensities.append(intensities)

    def voxelwise(self) -> dict[str, Any]:
        """Give the form that `VoxelwiseRegression.from_json` reads."""
        coefficients = {}
        for key, gram in self._grams.items():
            jitter = 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram))
            solved = np.linalg.solve(gram + jitter, self._rights[key])
            coefficients[key] = [float(f"{c:.6g}") for c in solved]
        return {"input_range": list(INPUT_RANGE), "contrast": CONTRAST, "coefficients": coefficients}

    def intensity(self) -> dict[str, Any]:
        """Give the form that `IntensityPredictor.from_json` reads."""
        return fit_intensity(self.intensities)


def fit_intensity(subjects: Sequence[dict[Modality, Intensity]]) -> dict[str, Any]:
    """Fit ridge regressions of log ratio and log deviation for every set of present sequences.

    The ratio is predicted from ratios alone.
    """
    coefficients = {}
    for inputs, target in subsets():
        rows = [intensity_features({m: s[m] for m in inputs}, logarithmic=True) for s in subjects]
        features, count = np.stack([r[0] for r in rows]), len(inputs)
        goals = np.array([[math.log(s[target].mean / s[target].std) for s in subjects]])
        deviations = np.array([[math.log(s[target].std) - r[1] for s, r in zip(subjects, rows, strict=True)]])
        [to_ratio] = penalised_fit(features[:, : 1 + count], goals, RATIO_RIDGES[target])
        coefficients[subset_key(inputs, target)] = [
            to_ratio + [0.0] * count,
            *penalised_fit(features, deviations, RIDGE),
        ]
    ranges = {}
    for m in MODALITIES:
        ratios = [s[m].mean / s[m].std for s in subjects]
        ranges[m] = [round(min(ratios), 4), round(max(ratios), 4)]
    return {"logarithmic": True, "ratio_range": ranges, "coefficients": coefficients}


def penalised_fit(features: NDArray[np.float64], goals: NDArray[np.float64], ridge: float) -> list[list[float]]:
    """Fit slopes, penalised after standardising, and a free constant, to six digits.

    Args:
        features: subjects x (1 + features), the first column 1.
        goals: goals x subjects.
    """
    centre, scale = features[:, 1:].mean(axis=0), features[:, 1:].std(axis=0) + 1e-9
    x = (features[:, 1:] - centre) / scale
    slopes = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ (goals - goals.mean(1, keepdims=True)).T)
    slopes = slopes.T / scale
    constants = goals.mean(axis=1) - slopes @ centre
    table = np.concatenate([constants[:, None], slopes], axis=1)
    return [[float(f"{c:.6g}") for c in row] for row in table]


def fit(cases: Iterable[Case]) -> RegressionFit:
    """Fit on every complete readable subject; the others are left out by name.

    Raises:
        UsageError: fewer than two subjects can be used.
    """
    fitted = RegressionFit()
    for subject, volumes in load_complete(cases):
        fitted.add(subject, {m: v.data for m, v in volumes.items()})
        log.info("%s read", subject)
    if len(fitted.subjects) < 2:
        raise UsageError("fewer than two complete subjects can be read; give a folder of subjects with four sequences.")
    return fitted


def fit_and_write(data: Path, folder: Path) -> Entry:
    """Fit on `data` and write the model `regression` with its manifest entry.

    Raises:
        UsageError: fewer than two subjects can be used, or `data` is no folder.
        WeightsError: `folder` cannot be written to.
    """
    fitted = fit(scan(data).cases)
    return write_entry(
        folder,
        "regression",
        RegressionSpec(normalization=NORMALIZATION),
        {"coefficients": encode(fitted.voxelwise()), "intensity": encode(fitted.intensity())},
        training=TrainingRecord(model="regression", subjects=tuple(fitted.subjects)),
        make_fallback=True,
    )


def encode(form: dict[str, Any]) -> bytes:
    """Give JSON as it is stored beside weights."""
    return (json.dumps(form, indent=1) + "\n").encode()


def medians_of(subject: CachedSubject) -> dict[Modality, float]:
    """Measure the true median in the brain of each sequence, 0 to 1, of a cache of the scheme `range`."""
    brain = np.asarray(subject.brain)
    return {m: float(np.median(subject.normalized[i][brain].astype(np.float32))) / 2 + 0.5
            for i, m in enumerate(MODALITIES)}  # fmt: skip


def fit_intensity_prior(subjects: Sequence[CachedSubject]) -> IntensityPrior:
    """Fit the normal distribution of each sequence's median, to six digits."""
    rows = [medians_of(s) for s in subjects]
    return IntensityPrior(
        means={m: round(float(np.mean([row[m] for row in rows])), 6) for m in MODALITIES},
        deviations={m: round(float(np.std([row[m] for row in rows])), 6) for m in MODALITIES},
    )


class IntensityCodes:
    """Tell the true medians of the training subjects, which a network with intensity encoding gets while it learns.

    Source: the winner of BraSyn 2024 (section 2.1): in training the code is that of the target itself.

    Args:
        subjects: those that batches are drawn from, in the sampler's order.
    """

    def __init__(self, subjects: Sequence[CachedSubject]) -> None:
        self._table = torch.tensor([[row[m] for m in MODALITIES] for row in map(medians_of, subjects)])

    def of(self, subjects: Tensor, target: int | Tensor) -> Tensor:
        """Give the medians of a target, (B,).

        Args:
            subjects: (B,) indices among the training subjects.
            target: index of the sequence, one for all or (B,).
        """
        return self._table.to(subjects.device)[subjects, target]
