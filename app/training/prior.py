"""What a network is told of its target's median while it trains: exactly what it will be told in use.

The predictor is one function, fitted once on all training subjects and stored with the weights, and a training subject
gets what that function says of its present sequences. Leaving each subject out of its own prediction looks cleaner and
is not: what is then predicted moves against the subject's own median, and a network could read it off.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from app.constants import MODALITIES, Modality, subset_key
from app.intensity import MedianPrior, median_features
from app.training.cache import CachedSubject
from app.training.regression import RIDGE, penalised_fit, subsets


def medians_of(subject: CachedSubject) -> dict[Modality, float]:
    """Median score in the brain per sequence."""
    brain = np.asarray(subject.brain)
    return {m: float(np.median(subject.scores[i][brain].astype(np.float32))) for i, m in enumerate(MODALITIES)}


def fit_prior(
    subjects: Sequence[CachedSubject], kind: Literal["none", "mean", "predicted"]
) -> tuple[MedianPrior, list[dict[Modality, float]]] | None:
    """The prior that a recipe asks for, and the medians that it was fitted on, one per subject; None for `none`."""
    if kind == "none":
        return None
    medians = [medians_of(s) for s in subjects]
    means = {m: round(float(np.mean([found[m] for found in medians])), 6) for m in MODALITIES}
    if kind == "mean":
        return MedianPrior(means), medians
    coefficients = {}
    for inputs, target in subsets():
        features = np.stack(
            [median_features({m: s.intensities[m] for m in inputs}, {m: found[m] for m in inputs})
             for s, found in zip(subjects, medians, strict=True)]
        )  # fmt: skip
        (row,) = penalised_fit(features, np.array([[found[target] for found in medians]]), RIDGE)
        coefficients[subset_key(inputs, target)] = tuple(row)
    span = {m: (min(f[m] for f in medians), max(f[m] for f in medians)) for m in MODALITIES}
    return MedianPrior(means, coefficients, span), medians


class Told:
    """What every training subject's network is told, for every target and every set of present sequences.

    Args:
        subjects: those that batches are drawn from, in the sampler's order.
    """

    def __init__(
        self, prior: MedianPrior, subjects: Sequence[CachedSubject], medians: Sequence[dict[Modality, float]]
    ) -> None:
        self._table = {
            subset_key(inputs, target): torch.tensor(
                [
                    prior.predict({m: s.intensities[m] for m in inputs}, {m: found[m] for m in inputs}, target)
                    for s, found in zip(subjects, medians, strict=True)
                ]
            )
            for inputs, target in subsets()
        }

    def of(self, subjects: Tensor, members: tuple[int, ...], target: int) -> Tensor:
        """(B,) medians of the target.

        Args:
            subjects: (B,) indices among the training subjects.
            members: indices of the present sequences.
        """
        table = self._table[subset_key([MODALITIES[m] for m in members], MODALITIES[target])]
        return table.to(subjects.device)[subjects]
