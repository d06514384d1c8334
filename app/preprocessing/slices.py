"""Crop volumes to stacks of slices, and paste them back exactly.

A slice keeps the order of the volume's remaining axes: axial slices are (left, posterior), coronal ones
(left, superior), sagittal ones (posterior, superior). The network sees each slice through a window, a multiple of 16 on
each side. It may reach over the volume's edge, where it holds the background value.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class Canvas:
    """State size and place of the window that a network was trained on.

    Attributes:
        sizes: rows and columns per view, multiples of 16.
        centre: `brain` (window centred on the brain's bounding box) or `volume` (on the whole slice, which
            pads 155 voxels to 240 by 42 and 43).
    """

    sizes: dict[View, tuple[int, int]]
    centre: Literal["brain", "volume"] = "brain"

    def __post_init__(self) -> None:
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
    """

    view: View
    start: tuple[int, int]
    size: tuple[int, int]
    slices: tuple[int, ...]
    step: int = 1


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
