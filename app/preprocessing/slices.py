"""Crop volumes to stacks of slices, and paste them back exactly.

A slice keeps the order of the volume's remaining axes: axial slices are (left, posterior), coronal ones
(left, superior), sagittal ones (posterior, superior). The network sees each slice through a window, a multiple of 16 on
each side. It may reach over the volume's edge, where it holds the background value.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from app.core.constants import VIEWS, View
from app.core.types import AnyVolume, MaskArray, SliceStack, VolumeArray

#: The axis of an L, P, S volume along which a view's slices are stacked.
SLICE_AXIS: Final[dict[View, int]] = {"axial": 2, "sagittal": 0, "coronal": 1}

#: Networks halve a slice four times.
MULTIPLE: Final = 16
#: Least rows and columns of a window close to the brain, and how many it has around that.
CLOSE_SIDE: Final = 64
CLOSE_RIM: Final = 8
#: Slices of a brain that share such a window.
CLOSE_DEPTH: Final = 8


@dataclass(frozen=True)
class Canvas:
    """State size and place of the window that a network was trained on.

    Attributes:
        sizes: rows and columns per view, multiples of 16.
        centre: `brain` (window centred on the brain's bounding box) or `volume` (on the whole slice, which
            pads 155 voxels to 240 by 42 and 43).
        close: what rows and columns of smaller windows, close to the brain of a few slices, are a multiple of, for a
            network that learnt those and is run on them; 0 for one that is run on whole windows.
    """

    sizes: dict[View, tuple[int, int]]
    centre: Literal["brain", "volume"] = "brain"
    close: int = 0

    def __post_init__(self) -> None:
        if self.close not in {0, 1, 2, 4, 8, MULTIPLE}:
            raise ValueError(f"close = {self.close} is neither 0 nor a divisor of {MULTIPLE}")
        for view, size in self.sizes.items():
            if view not in VIEWS or any(n <= 0 or n % MULTIPLE for n in size):
                raise ValueError(f"canvas {size} of view {view!r} is not a pair of multiples of {MULTIPLE}")


@dataclass(frozen=True)
class Window:
    """Mark a rectangle of the slices of one view.

    Attributes:
        view: of the slices.
        start: first row and column; negative where the window begins before the volume.
        size: rows and columns.
        slices: indices along the slice axis that have any foreground; the others are background.
        step: the largest distance of two listed slices between which slices of foreground were left out.
        parts: smaller windows, close to the brain, which together list the same slices; none where the network sees
            them through the whole window.
    """

    view: View
    start: tuple[int, int]
    size: tuple[int, int]
    slices: tuple[int, ...]
    step: int = 1
    parts: tuple[Window, ...] = ()


def neighbour_offsets(neighbours: int) -> tuple[int, ...]:
    """List what a network with neighbours sees, as distances from the slice that it makes: 0, -1, 1, -2, 2, ..."""
    return (0, *(sign * k for k in range(1, neighbours + 1) for sign in (-1, 1)))


def middle_slices(slices: tuple[int, ...], count: int) -> tuple[int, ...]:
    """Choose the middles of as few passes as make all of some slices, each pass `count` that follow each other.

    Args:
        slices: indices, rising.
        count: odd.
    """
    half, middles = count // 2, list[int]()
    for index in slices:
        if not middles or index > middles[-1] + half:
            middles.append(index + half)
    return tuple(middles)


def stack_slices(volume: AnyVolume, view: View) -> AnyVolume:
    """Turn a volume (left, posterior, superior) into slices (slice, row, column) of shared memory."""
    return np.moveaxis(volume, SLICE_AXIS[view], 0)


def unstack_slices(slices: AnyVolume, view: View) -> AnyVolume:
    """Invert `stack_slices`."""
    return np.moveaxis(slices, 0, SLICE_AXIS[view])


def place_window(foreground: MaskArray, view: View, canvas: Canvas) -> Window:
    """Place the window of one view; a foreground beyond the canvas widens it by 16s.

    Args:
        foreground: bool, axes (left, posterior, superior). Without any voxel, no slice is listed.
    """
    stack = stack_slices(foreground, view)
    slices = np.flatnonzero(stack.any(axis=(1, 2)))
    flat: NDArray[np.bool_] = np.any(stack, axis=0)
    starts, sizes = [], []
    for axis in (0, 1):
        extent = flat.shape[axis]
        filled = np.flatnonzero(np.any(flat, axis=1 - axis))
        first, last = (int(filled[0]), int(filled[-1])) if filled.size else (0, extent - 1)
        if canvas.centre == "brain":
            needed, middle = last - first + 1, first + last + 1
        else:
            needed, middle = extent, extent
        wanted = canvas.sizes[view][axis]
        size = max(wanted, -(-needed // MULTIPLE) * MULTIPLE)
        starts.append((middle - size) // 2 if canvas.centre == "brain" else -((size - extent) // 2))
        sizes.append(size)
    return Window(view, (starts[0], starts[1]), (sizes[0], sizes[1]), tuple(int(i) for i in slices))


def thin_out(window: Window, step: int, first: int = 0) -> Window:
    """List every so-maniest of a window's slices, and each that has no neighbour on both sides.

    Args:
        first: place of the first that is kept, less than `step`.
    """
    if step == 1:
        return window
    known = set(window.slices)
    kept = tuple(
        index
        for place, index in enumerate(window.slices)
        if place % step == first or not {index - 1, index + 1} <= known
    )
    return replace(window, slices=kept, step=step)


def plan_window(foreground: MaskArray, view: View, canvas: Canvas, step: int = 1, first: int = 0) -> Window:
    """Place the window of one view, list every so-maniest slice, and find its smaller windows if the network has them.

    Args:
        foreground: bool, axes (left, posterior, superior).
        step, first: as in `thin_out`.
    """
    window = thin_out(place_window(foreground, view, canvas), step, first)
    return replace(window, parts=close_parts(window, foreground, canvas.close)) if canvas.close else window


def close_parts(window: Window, foreground: MaskArray, multiple: int) -> tuple[Window, ...]:
    """Find smaller windows, each close to the brain of a few of the listed slices and of those left out beside them.

    The mirrored brain has the mirrored ones, whatever the view.

    Args:
        foreground: bool, axes (left, posterior, superior).
        multiple: of their rows and columns.
    """
    stack = stack_slices(foreground, window.view)
    inside, outside = overlap(window, stack.shape[1:])
    brain = stack[:, inside[0], inside[1]]
    filled = [np.zeros((len(stack), length), np.bool_) for length in window.size]
    for axis in (0, 1):
        filled[axis][:, outside[axis]] = brain.any(axis=2 - axis)
    parts = []
    for few in _few_each(window.slices, max(1, CLOSE_DEPTH // window.step)):
        near = slice(max(few[0] - window.step + 1, 0), few[-1] + window.step)
        rows, columns = (close_span(np.any(lines[near], axis=0), multiple) for lines in filled)
        start = (window.start[0] + rows.start, window.start[1] + columns.start)
        size = (rows.stop - rows.start, columns.stop - columns.start)
        parts.append(Window(window.view, start, size, few, window.step))
    return tuple(parts)


def _few_each(slices: tuple[int, ...], count: int) -> Iterator[tuple[int, ...]]:
    """Cut a list into pieces of at most `count`, the same from either end."""
    whole, half = len(slices), len(slices) // 2
    bounds = [(first, min(first + count, half)) for first in range(0, half, count)]
    middle = [(half, half + 1)] if whole % 2 else []
    for first, end in (*bounds, *middle, *((whole - end, whole - first) for first, end in reversed(bounds))):
        yield slices[first:end]


def close_span(filled: NDArray[np.bool_], multiple: int, rim: int = CLOSE_RIM) -> slice:
    """Find the part of a window's rows, or columns, that lies close to the brain.

    Args:
        filled: which of them show brain.
        multiple: that its length shall be of; the window's length is one.
        rim: so many more on each side, where the window has them.

    Returns:
        The part: no shorter than `CLOSE_SIDE` where the window is not; all of it where nothing is filled.
    """
    length, where = len(filled), np.flatnonzero(filled)
    if not where.size:
        return slice(0, length)
    low, high = int(where[0]) - rim, int(where[-1]) + 1 + rim
    size = min(length, max(CLOSE_SIDE, -(-(high - low) // multiple) * multiple))
    start = min(max((low + high - size) // 2, 0), length - size)
    return slice(start, start + size)


def crop(volume: VolumeArray, window: Window, background: float) -> SliceStack:
    """Crop the window's slices, with `background` beyond the volume.

    Returns:
        float32 (len(window.slices), rows, columns).
    """
    stack = stack_slices(volume, window.view)
    out = np.full((len(window.slices), *window.size), background, dtype=np.float32)
    inside, outside = overlap(window, stack.shape[1:])
    out[:, outside[0], outside[1]] = stack[list(window.slices)][:, inside[0], inside[1]]
    return out


def paste(slices: SliceStack, window: Window, shape: tuple[int, ...], background: float) -> VolumeArray:
    """Invert `crop` inside the window; `background` everywhere else.

    Args:
        slices: float32 (len(window.slices), rows, columns).
        shape: of the volume, axes (left, posterior, superior).
    """
    volume = np.full(shape, background, dtype=np.float32)
    stack = stack_slices(volume, window.view)
    inside, outside = overlap(window, stack.shape[1:])
    for index, source in zip(window.slices, slices, strict=True):
        stack[index, inside[0], inside[1]] = source[outside[0], outside[1]]
    return volume


def overlap(window: Window, extent: tuple[int, ...]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the common part of window and slice in indices of the slice, then of the window."""
    inside, outside = [], []
    for start, size, length in zip(window.start, window.size, extent, strict=True):
        low, high = max(start, 0), min(start + size, length)
        inside.append(slice(low, high))
        outside.append(slice(low - start, high - start))
    return (inside[0], inside[1]), (outside[0], outside[1])
