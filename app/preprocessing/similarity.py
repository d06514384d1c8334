"""Compute the map of structural similarity that the challenge averages.

Source: eq. 13 of Wang et al., IEEE TIP 2004, as torchmetrics has it: Gaussian window of deviation 1.5 in 11 taps,
k1 0.01, k2 0.03, reflected border.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

#: The window of the similarity, in voxels, and the constants of its formula.
SIGMA = 1.5
TAPS = 11
K1, K2 = 0.01, 0.03


def ssim_map(
    prediction: NDArray[np.float64], truth: NDArray[np.float64], extent: float | None = None
) -> NDArray[np.float64]:
    """Compute the structural similarity per voxel, float64 in the inputs' shape.

    Args:
        prediction, truth: any number of axes, each longer than 5.
        extent: dynamic range; by default the larger of the two volumes' ranges, as torchmetrics takes it. Two
            constant volumes count as identical and score 1 everywhere.
    """
    if extent is None:
        extent = dynamic_range(prediction, truth)
    if extent == 0:
        return np.ones_like(truth)
    c1, c2 = (K1 * extent) ** 2, (K2 * extent) ** 2
    mean_p, mean_t = _blur(prediction), _blur(truth)
    # torchmetrics clamps the two variances at 0.
    var_p = np.maximum(_blur(prediction * prediction) - mean_p * mean_p, 0)
    var_t = np.maximum(_blur(truth * truth) - mean_t * mean_t, 0)
    cov = _blur(prediction * truth) - mean_p * mean_t
    upper = (2 * mean_p * mean_t + c1) * (2 * cov + c2)
    return np.asarray(upper / ((mean_p * mean_p + mean_t * mean_t + c1) * (var_p + var_t + c2)))


def dynamic_range(prediction: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """Return the larger of the two volumes' ranges."""
    return max(float(np.ptp(prediction)), float(np.ptp(truth)))


def _blur(volume: NDArray[np.float64]) -> NDArray[np.float64]:
    """Blur by a separable Gaussian; `mirror` repeats no edge, as torch's reflect padding."""
    taps = np.arange(TAPS) - TAPS // 2
    kernel = np.exp(-((taps / SIGMA) ** 2) / 2)
    kernel /= kernel.sum()
    for axis in range(volume.ndim):
        volume = correlate1d(volume, kernel, axis=axis, mode="mirror")
    return volume
