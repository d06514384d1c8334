"""Where the slices of a series lie, and whether they are one volume.

Readers stretch over gaps, mix stacks and overlook tilt in silence; so this is checked here, from positions alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from app.core.types import Affine

#: Fewest slices of a sequence: fewer are a localizer.
LEAST_SLICES: Final = 3
#: Difference of direction cosines, and share of the spacing, below which slices are parallel and evenly spaced. Headers
#: round to five digits or so; scanners repeat a slice or lose one, and never space them unevenly.
_PARALLEL: Final = 1e-3
_EVEN: Final = 0.02
#: Share of the spacing by which a slice may lie beside its place, counted from the first: small steps must not add up.
_DRIFT: Final = 0.1
#: Share of the spacing by which successive slices may lie beside one another.
_LATERAL: Final = 0.02
#: Single slices that may lack, the share of all that they may be, and the widest gap in spacings; of one study with a
#: lost slice (`docs/clinic.md`).
_MOST_GAPS: Final = 2
_GAP_SHARE: Final = 0.05
_WIDEST_GAP: Final = 2.1
#: Millimetres within which two slices lie at one place.
_SAME_PLACE: Final = 0.01


class GeometryError(ValueError):
    """Report slices that are no volume; the message lacks its subject, the series."""


@dataclass(frozen=True)
class SliceHeader:
    """Hold what one slice's header says of its place.

    Attributes:
        orientation: row and column direction cosines, six numbers.
        position: of the first pixel, millimetres L, P, S.
        spacing: between rows and between columns, millimetres.
        size: rows and columns.
        thickness: of the slice, millimetres; None where the header does not say.
    """

    orientation: tuple[float, ...]
    position: tuple[float, ...]
    spacing: tuple[float, float]
    size: tuple[int, int]
    thickness: float | None = None


@dataclass(frozen=True)
class Stack:
    """Hold the order of slices as one volume.

    Attributes:
        order: indices of the slices, from one end to the other; -1 where one lacks and is interpolated.
        copies: per slice that lies where another does, the one that is used.
        affine: from column, row and slice to NIfTI's millimetres.
    """

    order: tuple[int, ...]
    copies: dict[int, int]
    affine: Affine

    @property
    def lacking(self) -> int:
        """Count the slices that are interpolated."""
        return self.order.count(-1)


def stack(slices: Sequence[SliceHeader]) -> Stack:
    """Order slices by their positions, and check that they are one volume.

    Raises:
        GeometryError: too few, of several sizes or directions, several at each place, sheared, or with gaps.
    """
    if len(slices) < LEAST_SLICES:
        raise GeometryError(f"has {len(slices)} slices, at least {LEAST_SLICES} are needed (a localizer?)")
    first = slices[0]
    if any(s.size != first.size or not np.allclose(s.spacing, first.spacing, rtol=1e-3) for s in slices):
        raise GeometryError("has slices of several sizes; export each stack as a series of its own")
    if any(not np.allclose(s.orientation, first.orientation, atol=_PARALLEL) for s in slices):
        raise GeometryError("has slices of several directions; export each stack as a series of its own")
    rows, columns = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    normal = np.cross(rows, columns)
    positions = np.array([s.position for s in slices], dtype=np.float64)
    heights = positions @ normal
    order = [int(i) for i in np.argsort(heights, kind="stable")]
    kept, copies = _without_repeats(order, heights)
    spacing = _spacing_of(heights[kept])
    _check_straight(positions[kept], heights[kept], normal, spacing)
    filled = _with_gaps(kept, heights, spacing)
    _check_places(filled, heights, spacing)
    affine = _affine(first, positions[kept[0]], normal, spacing)
    return Stack(tuple(filled), copies, affine)


def _without_repeats(order: list[int], heights: NDArray[np.float64]) -> tuple[list[int], dict[int, int]]:
    kept: list[int] = [order[0]]
    copies: dict[int, int] = {}
    for index in order[1:]:
        if heights[index] - heights[kept[-1]] > _SAME_PLACE:
            kept.append(index)
        else:
            copies[index] = kept[-1]
    if len(copies) >= len(kept) / 2:
        # Echoes, phases or repetitions: every place has several.
        raise GeometryError("holds more than one stack (echoes, phases or repetitions); export each by itself")
    if len(kept) < LEAST_SLICES:
        raise GeometryError("has its slices at fewer than three places")
    return kept, copies


def _spacing_of(heights: NDArray[np.float64]) -> float:
    return float(np.median(np.diff(heights)))


def _check_straight(
    positions: NDArray[np.float64], heights: NDArray[np.float64], normal: NDArray[np.float64], spacing: float
) -> None:
    """Refuse slices that lie beside one another, as with a tilted gantry."""
    lateral = positions - positions[0] - np.outer(heights - heights[0], normal)
    steps = np.linalg.norm(np.diff(lateral, axis=0), axis=1)
    if steps.size and float(steps.max()) > _LATERAL * spacing:
        raise GeometryError(
            f"has sheared slices ({float(steps.max()):.2g} mm sideways from one to the next); resample it first"
        )


def _with_gaps(kept: list[int], heights: NDArray[np.float64], spacing: float) -> list[int]:
    """Put -1 where one slice lacks.

    Raises:
        GeometryError: the slices are uneven, or too many lack.
    """
    filled, gaps = [kept[0]], 0
    for before, after in pairwise(kept):
        steps = float(heights[after] - heights[before]) / spacing
        if abs(steps - 1) <= _EVEN:
            filled.append(after)
        elif abs(steps - 2) <= 2 * _EVEN and steps <= _WIDEST_GAP:
            gaps += 1
            filled += [-1, after]
        else:
            raise GeometryError(
                f"has a gap of {steps * spacing:.2f} mm between slices that lie {spacing:.2f} mm apart; export it again"
            )
    if gaps > _MOST_GAPS or gaps > _GAP_SHARE * (len(kept) + gaps):
        raise GeometryError(f"lacks {gaps} of its {len(kept) + gaps} slices; export it again")
    return filled


def _check_places(filled: list[int], heights: NDArray[np.float64], spacing: float) -> None:
    """Refuse slices that drift from the places that one spacing gives them."""
    drift = max(abs(float(heights[i] - heights[filled[0]]) - n * spacing) for n, i in enumerate(filled) if i >= 0)
    if drift > _DRIFT * spacing:
        raise GeometryError(f"has uneven slices: one lies {drift:.2f} mm beside its place; resample it first")


def _affine(first: SliceHeader, origin: NDArray[np.float64], normal: NDArray[np.float64], spacing: float) -> Affine:
    between_rows, between_columns = first.spacing
    affine = np.eye(4)
    affine[:3, 0] = np.array(first.orientation[:3]) * between_columns
    affine[:3, 1] = np.array(first.orientation[3:]) * between_rows
    affine[:3, 2] = normal * spacing
    affine[:3, 3] = origin
    return np.asarray(np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, dtype=np.float64)
