"""Random numbers for slices with their neighbours, which must vary alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class DrawnAlike:
    """Random numbers for slices with their neighbours: what is drawn per slice is the same for all of a group.

    Args:
        random: draws for a group.
        count: slices of a group, which follow each other.
    """

    def __init__(self, random: np.random.Generator, count: int) -> None:
        self._random, self._count = random, count

    def random(self, size: int | tuple[int, ...]) -> NDArray[np.float64]:
        """As numpy's; the first axis counts slices."""
        return self._spread(self._random.random, size)

    def uniform(self, low: float, high: float, size: int | tuple[int, ...]) -> NDArray[np.float64]:
        """As numpy's; the first axis counts slices."""
        return self._spread(lambda smaller: self._random.uniform(low, high, smaller), size)

    def integers(self, low: int, high: int | None = None, size: int | tuple[int, ...] | None = None) -> Any:
        """As numpy's: one number for all, or one for each slice."""
        if size is None:
            return self._random.integers(low, high)
        return self._spread(lambda smaller: self._random.integers(low, high, smaller), size)

    def _spread(self, draw: Callable[[tuple[int, ...]], NDArray[Any]], size: int | tuple[int, ...]) -> NDArray[Any]:
        first, *rest = (size,) if isinstance(size, int) else size
        return np.repeat(draw((first // self._count, *rest)), self._count, axis=0)


#: What augmentation draws from.
Random = np.random.Generator | DrawnAlike
