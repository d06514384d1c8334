"""Tell white matter, grey matter and fluid apart by a mixture of three Gaussians."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.core.types import MaskArray

#: White matter, grey matter, fluid.
CLASSES: Final = 3
_ROUNDS: Final = 40
#: Voxels that are fitted at most; all get their probabilities.
_FITTED: Final = 200_000
#: T1n's quantiles at which the classes begin: in the order of `CLASSES`.
_FIRST: Final = (0.8, 0.45, 0.05)
#: Least deviation of a class: an atlas of phantoms is nearly constant.
_LEAST: Final = 0.02


def tissue_probabilities(images: NDArray[np.float32], brain: MaskArray) -> NDArray[np.float32]:
    """Fit three classes to two sequences, and give their probabilities in the brain; 0 outside.

    The fit is by expectation and maximisation, from quantiles of T1n: it has no random number. Classes are ordered by
    T1n, in which white matter is brightest and fluid darkest.

    Args:
        images: T1n and T2w, 2 x any shape.
        brain: bool, that shape; at least one voxel.
    """
    values = images[:, brain].astype(np.float64)
    fitted = values[:, :: max(1, values.shape[1] // _FITTED)]
    means = np.stack([_near(fitted, q) for q in _FIRST])
    deviations = np.tile(np.maximum(fitted.std(axis=1) / 2, _LEAST), (CLASSES, 1))
    shares = np.full(CLASSES, 1 / CLASSES)
    for _ in range(_ROUNDS):
        weights = _posterior(fitted, means, deviations, shares)
        totals = weights.sum(axis=1) + 1e-9
        means = (weights @ fitted.T) / totals[:, None]
        spread = np.stack([(w * (fitted - m[:, None]) ** 2).sum(axis=1) for w, m in zip(weights, means, strict=True)])
        deviations = np.maximum(np.sqrt(spread / totals[:, None]), _LEAST)
        shares = totals / totals.sum()
    order = np.argsort(-means[:, 0], kind="stable")
    probabilities = np.zeros((CLASSES, *brain.shape), dtype=np.float32)
    probabilities[:, brain] = _posterior(values, means[order], deviations[order], shares[order])
    return probabilities


def _near(values: NDArray[np.float64], quantile: float) -> NDArray[np.float64]:
    """Mean of the voxels whose T1n is near a quantile."""
    low, high = np.quantile(values[0], [max(quantile - 0.05, 0), min(quantile + 0.05, 1)])
    return np.asarray(values[:, (values[0] >= low) & (values[0] <= high)].mean(axis=1))


def _posterior(
    values: NDArray[np.float64],
    means: NDArray[np.float64],
    deviations: NDArray[np.float64],
    shares: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Probability of each class at each voxel, classes x voxels."""
    logs = np.stack([
        np.log(share) - np.log(d).sum() - 0.5 * (((values - m[:, None]) / d[:, None]) ** 2).sum(axis=0)
        for m, d, share in zip(means, deviations, shares + 1e-12, strict=True)
    ])  # fmt: skip
    weights = np.exp(logs - logs.max(axis=0))
    return np.asarray(weights / weights.sum(axis=0))
