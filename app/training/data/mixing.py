"""The share of simulated exams among all that are drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def mixed_weights(weights: NDArray[np.float64], simulated: Sequence[bool], share: float) -> NDArray[np.float64]:
    """Give simulated exams together a share of all draws, each as much; the real ones keep their proportions.

    Args:
        weights: probability of each subject, simulated ones among them.
        simulated: which they are.
    """
    marks = np.array(simulated, dtype=bool)
    if not marks.any() or marks.all():
        return weights
    real = np.where(marks, 0.0, weights)
    return np.asarray(np.where(marks, share / marks.sum(), (1 - share) * real / real.sum()))
