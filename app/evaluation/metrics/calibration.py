"""Compare expected with observed errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Bins of a calibration.
BINS = 10


@dataclass(frozen=True)
class Calibration:
    """Hold expected and observed absolute error, bin by bin, the least expected first.

    Attributes:
        expected, observed: float64 (bins,), mean of each over the bin.
        counts: int64 (bins,), voxels; they differ by one at most.
        error: expected calibration error: |expected - observed| of the bins, averaged over all voxels. 0 is perfect.
        correlation: Spearman's between expected and observed error of the single voxels; how well they are ranked.
    """

    expected: NDArray[np.float64]
    observed: NDArray[np.float64]
    counts: NDArray[np.int64]
    error: float
    correlation: float


def calibrate(expected: NDArray[np.float32], observed: NDArray[np.float32], bins: int = BINS) -> Calibration:
    """Sort voxels by expected error into bins of equal count, and compare the means.

    Source: the reliability diagram and the expected calibration error (Guo et al., ICML 2017), for absolute errors.

    Args:
        expected, observed: absolute errors in one unit, any shape, the same for both.

    Raises:
        ValueError: the shapes differ, there are fewer voxels than bins, or a value is negative or not finite.
    """
    first, second = np.ravel(expected).astype(np.float64), np.ravel(observed).astype(np.float64)
    if first.shape != second.shape or first.size < bins:
        raise ValueError(f"{first.size} expected and {second.size} observed errors cannot be sorted into {bins} bins")
    if not (np.isfinite(first).all() and np.isfinite(second).all() and min(first.min(), second.min()) >= 0):
        raise ValueError("an absolute error is negative or not finite")
    order = np.argsort(first, kind="stable")
    parts = np.array_split(order, bins)
    means = np.array([[first[p].mean(), second[p].mean()] for p in parts])
    counts = np.array([len(p) for p in parts], dtype=np.int64)
    error = float((np.abs(means[:, 0] - means[:, 1]) * counts).sum() / counts.sum())
    return Calibration(means[:, 0], means[:, 1], counts, error, _rank_correlation(first, second))


def _rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Compute Spearman's correlation, ties by mean rank; NaN where one side is constant."""
    ranks = []
    for values in (first, second):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[place.ravel()])
    one, other = (r - r.mean() for r in ranks)
    scale = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / scale if scale > 0 else float("nan")
