"""Networks over volumes larger than their window: overlapping windows, averaged with Gaussian weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.core.errors import CaseError
from app.core.types import MaskArray
from app.preprocessing.foreground import bounding_box

Sides = tuple[int, int, int]
#: Deviation of the weights as a share of the window, as in nnU-Net and MONAI.
SIGMA_SHARE: Final = 0.125
#: The smallest weight; voxels in the volume's corners have no other.
_LEAST: Final = 1e-3


def slide(
    volumes: NDArray[np.float32],
    run: Callable[[NDArray[np.float32]], NDArray[np.float32]],
    channels: int,
    window: Sides,
    foreground: MaskArray,
    fill: float,
    overlap: float = 0.5,
) -> NDArray[np.float32]:
    """Run a network over a volume, window by window.

    Args:
        volumes: float32 C x X x Y x Z.
        run: from float32 C x window to float32 channels x window.
        window: sides of one window.
        foreground: bool X x Y x Z; windows cover the box around it and nothing else.
        fill: value of `volumes` beyond their borders, where the box is smaller than a window.
        overlap: share of a window that the next one covers again, 0 to below 1.

    Returns:
        Float32 channels x X x Y x Z, 0 where no window reaches. Beside it memory holds three windows and a volume of
        one channel.

    Raises:
        ValueError: the foreground is empty.
        CaseError: the network gave values that are not finite.
    """
    box = bounding_box(foreground)
    shape = volumes.shape[1:]
    total = np.zeros((channels, *shape), dtype=np.float32)
    weights = np.zeros(shape, dtype=np.float32)
    gaussian = gaussian_weights(window)
    for start in starts(box, window, overlap):
        inside, outside = _overlap(start, window, shape)
        inputs = np.full((len(volumes), *window), fill, dtype=np.float32)
        inputs[(slice(None), *outside)] = volumes[(slice(None), *inside)]
        total[(slice(None), *inside)] += (run(inputs) * gaussian)[(slice(None), *outside)]
        weights[inside] += gaussian[outside]
    # Where no window reaches there is 0 to divide.
    weights[weights == 0] = 1
    total /= weights
    if not np.isfinite(total).all():
        # A comparison with what is not a number would find nothing, and nobody would know.
        raise CaseError("the network gave values that are not finite; check the inputs, or use --precision fp32.")
    return total


def starts(box: tuple[slice, slice, slice], window: Sides, overlap: float) -> Iterator[Sides]:
    """Place the fewest windows that cover the box with at least that overlap, evenly spread.

    A box smaller than a window gets one, centred on it; its corner may then lie before the volume's.

    Yields:
        First corners.
    """
    rows = []
    for side, length in zip(box, window, strict=True):
        extent = side.stop - side.start
        if extent <= length:
            rows.append([side.start + (extent - length) // 2])
            continue
        step = max(1, int(length * (1 - overlap)))
        count = 1 + -(-(extent - length) // step)
        rows.append([side.start + round(i * (extent - length) / (count - 1)) for i in range(count)])
    yield from product(*rows)


def gaussian_weights(window: Sides) -> NDArray[np.float32]:
    """Weigh the voxels of a window: float32, 1 in the middle, never below a thousandth."""
    weights: NDArray[np.float32] = np.ones(window, dtype=np.float32)
    for axis, length in enumerate(window):
        at = np.arange(length, dtype=np.float32) - (length - 1) / 2
        bell = np.exp(-((at / (SIGMA_SHARE * length)) ** 2) / 2)
        weights = weights * bell.reshape([-1 if a == axis else 1 for a in range(3)])
    return np.asarray(np.maximum(weights / weights.max(), _LEAST), dtype=np.float32)


def _overlap(start: Sides, window: Sides, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Find the common part of window and volume: in the volume's indices, and in the window's."""
    inside, outside = [], []
    for first, length, extent in zip(start, window, shape, strict=True):
        low, high = max(first, 0), min(first + length, extent)
        inside.append(slice(low, high))
        outside.append(slice(low - first, high - first))
    return tuple(inside), tuple(outside)
