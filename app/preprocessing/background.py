"""Bring the background of a volume to exact 0, where resampling, rescaling or another tool left something else.

Networks and measurements take every voxel above 0 for brain. Many tools leave other values around it: one constant;
zeros that were rounded; ringing, which falls off from the brain's edge with both signs. Background is decided by place
and amount: it reaches the volume's border, and it is small beside the brain. A volume whose background is exact 0 stays
as it is, to the bit. So does a head in noisy air.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.core.types import MaskArray, VolumeArray

#: Shares of the brain's brightness (its 99.5th percentile). Below the first a value is a trace wherever it is found,
#: below the second it may be one beside the brain; from the third on it is surely content.
_TRACE: Final = 1e-3
_DARK: Final = 0.05
_SOLID: Final = 0.1
#: Share of the content that may be negative, or traces, in a volume that needs no care; real ones stay far below.
_FEW: Final = 0.01
#: Share of the edges behind which ringing that was cut off at 0 shows; real volumes stay below a third of it.
_RINGING: Final = 0.1
#: Share of the brain's voxels that may lie below zero before its scale is in doubt, and is surely another one.
_SOME_NEGATIVE: Final = 0.01
_MOST_NEGATIVE: Final = 0.25
#: A constant smaller than this share of the brain's brightness does no harm to it.
_HARMLESS: Final = 0.025
#: Voxels around the content within which resampling rings, and twice as many that show whether it has faded there.
_REACH: Final = 4
#: A cubic B-spline rings beside a step, below zero, by a tenth of the step's height where it falls between two voxels.
#: A voxel of less than this many times that depth is at most half brain. The next lobe has a quarter of the depth.
_HALF_HEIGHT: Final = 5.1
#: What lies further below zero is no ringing but padding.
_DEEPEST: Final = 0.35
_SECOND_LOBE: Final = 0.27
#: Share of the largest piece of content below which another one is a speck that ringing or noise left.
_SPECK: Final = 1e-3


class UnclearBackgroundError(ValueError):
    """Report a volume whose background, and so whose scale, cannot be known.

    The message lacks its subject, the file.
    """


@dataclass(frozen=True)
class _Level:
    """Hold the value around which the background lies.

    Attributes:
        value: 0 where the background is about 0.
        exact: whether nearly all of the border's dark voxels have just this value.
        bright: the 99.5th percentile of the content, above 0.
    """

    value: float
    exact: bool
    bright: float

    @property
    def span(self) -> float:
        """Tell how far the content rises above the background."""
        return self.bright - min(self.value, 0.0)


def clear_background(volume: VolumeArray) -> tuple[VolumeArray, str | None]:
    """Set the background to exact 0.

    Args:
        volume: float32, three axes, finite, not constant. It is not changed.

    Returns:
        The volume itself where nothing had to be done, or nothing is known of its background. Else a new array, and
        what was done, as a sentence without its subject. Negative voxels outside of the background stay.

    Raises:
        UnclearBackgroundError: the brain has negative values or a background that may belong to its scale.
    """
    level = _find_level(volume)
    if level is None:
        return volume, None
    if level.exact and not _has_traces(volume, level):
        return (volume, None) if level.value == 0 else _clear_constant(volume, level)
    return _clear_traces(volume, level)


# ------------------------------------------------------------ what the background is


def _find_level(volume: VolumeArray) -> _Level | None:
    """Find the value of the background at the volume's border; None where it shows none."""
    border = _faces(volume)
    if float(volume.max()) <= 0:
        return None
    values, counts = np.unique(border, return_counts=True)
    mode = float(values[counts.argmax()])
    zeros = int(counts[values == 0].sum())
    for value, count in ((0.0, zeros), (mode, int(counts.max()))):
        if count >= 0.05 * border.size:
            bright = _brightness(volume, value)
            near = np.count_nonzero(np.abs(border - value) < _DARK * (bright - min(value, 0.0)))
            if count >= 0.9 * near:
                return _Level(value, exact=True, bright=bright)
    middle = float(np.median(border))
    bright = _brightness(volume, middle)
    level = _Level(middle, exact=False, bright=bright)
    deviations = np.abs(border - middle)
    if np.count_nonzero(deviations < _DARK * level.span) < 0.5 * border.size:
        return None
    if abs(middle) < _TRACE * level.span:
        return _Level(0.0, exact=False, bright=bright)
    # Noisy air lies around some value too, but not so closely.
    return level if float(np.median(deviations)) < _TRACE * level.span else None


def _faces(volume: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([np.take(volume, i, axis=axis).ravel() for axis in range(3) for i in (0, -1)])


def _brightness(volume: VolumeArray, value: float) -> float:
    """Measure the content's 99.5th percentile, without the voxels of one value."""
    content = volume[volume > 0]
    if value > 0:
        content = content[content != np.float32(value)]
    return float(np.percentile(content, 99.5)) if content.size else 0.0


def _has_traces(volume: VolumeArray, level: _Level) -> bool:
    """Tell whether more lies around an exact background than a few dark or negative voxels."""
    if level.value > 0:
        # What lies below a positive constant is brain.
        return False
    above = volume - np.float32(level.value) if level.value else volume
    content = above[above > 0]
    negative = np.count_nonzero(above < 0) if float(above.min()) < 0 else 0
    traces, dark = (np.count_nonzero(content < share * level.span) for share in (_TRACE, _DARK))
    if negative > _FEW * content.size or traces > _FEW * content.size:
        return True
    # Looked for last, since it takes longest.
    return bool(dark > _FEW / 3 * content.size) and _rings_above_zero(above, level.span)


def _rings_above_zero(above: VolumeArray, span: float) -> bool:
    """Tell whether dark voxels lie one voxel of background away from bright ones, as positive lobes of ringing do."""
    edges = lobes = 0
    for count, outer in _behind_edges(above, span):
        edges += count
        lobes += int(np.count_nonzero((outer > 0) & (outer < _DARK * span)))
    return edges > 50 and lobes > _RINGING * edges


def _behind_edges(above: VolumeArray, span: float) -> Iterator[tuple[int, VolumeArray]]:
    """Give the voxels two away from bright ones, with background between, along every eighth line each way."""
    for axis in range(3):
        lines = np.moveaxis(above, (axis, (axis + 1) % 3), (0, 1))[:, ::8]
        for line in (lines, lines[::-1]):
            outer = line[:-2][(line[1:-1] <= 0) & (line[2:] > _SOLID * span)]
            yield outer.size, outer


# ------------------------------------------------------------ one constant


def _clear_constant(volume: VolumeArray, level: _Level) -> tuple[VolumeArray, str | None]:
    value = np.float32(level.value)
    background = volume == value
    content = volume[~background]
    if level.value > 0 and np.count_nonzero(content < value) > _FEW * content.size:
        # Some of the brain has the same value.
        background = _connected_to_border(background)
    return _fill(volume, background, level)


def _fill(volume: VolumeArray, background: MaskArray, level: _Level) -> tuple[VolumeArray, str | None]:
    """Set a background of one value to 0, and shift the brain where that value is its zero."""
    shifted = _is_shifted(volume, background, level)
    cleared = volume - np.float32(level.value) if shifted else volume.copy()
    cleared[background] = 0
    if shifted:
        return cleared, f"its zero was at {level.value:g}, which was subtracted from every voxel"
    return cleared, f"its background of {level.value:g} was set to 0"


def _is_shifted(volume: VolumeArray, background: MaskArray, level: _Level) -> bool:
    """Tell whether the background's value is the zero of the brain's scale as well.

    A scan's darkest brain is far darker than its brightest: so one zero may be impossible, and the other must be it.

    Raises:
        UnclearBackgroundError: that cannot be known, or the brain has negative values.
    """
    values = volume[_inside(~background)]
    negative = int(np.count_nonzero(values < 0))
    harmless = abs(level.value) < _HARMLESS * level.bright
    if negative > _MOST_NEGATIVE * values.size or (negative > _SOME_NEGATIVE * values.size and not harmless):
        raise UnclearBackgroundError(_z_scored(negative))
    if level.value < 0 and _is_standardized(volume):
        raise UnclearBackgroundError(_z_scored(int(np.count_nonzero(volume < 0))))
    if harmless or not values.size:
        return False
    lowest, highest = (float(p) for p in np.percentile(values, [0.1, 99.5]))
    if highest <= 0 or level.value > lowest:
        return False
    from_zero, from_level = lowest / highest, (lowest - level.value) / (highest - level.value)
    if level.value < 0 and (from_zero > _DARK or from_level > 0.5):
        return False
    if level.value > 0 and from_zero > 0.5 > from_level:
        return True
    raise UnclearBackgroundError(
        f"has a background of {level.value:g}, which may or may not be the zero of its scale; "
        "give it with background 0."
    )


def _is_standardized(volume: VolumeArray) -> bool:
    """Tell whether all voxels together have mean 0, or a range of which 0 is the middle."""
    mean, std = float(volume.mean(dtype=np.float64)), float(volume.std(dtype=np.float64))
    low, high = float(volume.min()), float(volume.max())
    return abs(mean) < 0.01 * std or abs(low + high) < 1e-3 * high


def _z_scored(negative: int) -> str:
    return (
        f"has {negative} negative voxels: it was z-scored or shifted; give the original intensities, with background 0."
    )


# ------------------------------------------------------------ traces


def _clear_traces(volume: VolumeArray, level: _Level) -> tuple[VolumeArray, str | None]:
    above = volume - np.float32(level.value) if level.value else volume
    span = level.span
    outside = _connected_to_border(np.abs(above) < _DARK * span)
    near, around = _surroundings(above >= _SOLID * span)
    if not all(_are_traces(above[outside & place], span) for place in (around, ~(near | around))):
        return volume, None
    brain = _inside(~outside)
    negative = int(np.count_nonzero(volume[brain] < 0))
    if negative > _MOST_NEGATIVE * np.count_nonzero(brain):
        raise UnclearBackgroundError(_z_scored(negative))
    limit = _noise_limit(above[outside & ~near], span)
    background = _connected_to_border(above < np.maximum(np.float32(limit), _edge_limit(above, span)))
    background |= np.abs(above) < _TRACE * span / 10
    background |= _specks(~background)
    if level.value:
        return _fill(volume, background, level)
    cleared = volume.copy()
    cleared[background] = 0
    count = int(np.count_nonzero(volume[background]))
    if not count:
        return volume, None
    return cleared, f"{count} voxels of the background with traces of up to {limit:.3g} were set to 0"


def _are_traces(values: VolumeArray, span: float) -> bool:
    """Tell traces, which vanish away from the brain or swing around 0, from noisy air.

    Args:
        values: of one part of the background; any number.
    """
    if np.count_nonzero(np.abs(values) > 3 * _TRACE * span) <= _FEW * values.size:
        return True
    balance = np.count_nonzero(values < 0) / np.count_nonzero(values)
    return bool(0.25 < balance < 0.75 and np.percentile(np.abs(values), 99) < _DARK * span)


def _noise_limit(far: VolumeArray, span: float) -> float:
    """Measure how bright traces far from the brain are."""
    noise = 1.5 * float(np.percentile(np.abs(far), 99.9)) if far.size else 0.0
    return min(max(_TRACE * span, noise), _SOLID * span)


def _edge_limit(above: VolumeArray, span: float) -> VolumeArray:
    """Measure, for each voxel, below which value it belongs to the background that rings beside it."""
    from scipy import ndimage

    depth = np.where(above > -_DEEPEST * span, np.maximum(-above, 0), 0)
    for axis in range(3):
        lines, depths = np.moveaxis(above, axis, 0), np.moveaxis(depth, axis, 0)
        for line, below in ((lines, depths), (lines[::-1], depths[::-1])):
            _restore_cut_lobes(line, below, span)
    beside = ndimage.generate_binary_structure(3, 1)
    return np.asarray(np.float32(_HALF_HEIGHT) * ndimage.maximum_filter(depth, footprint=beside))


def _restore_cut_lobes(line: VolumeArray, depth: VolumeArray, span: float) -> None:
    """Write the depth of lobes that were cut off at 0, by the positive lobes behind them, into `depth`."""
    outer, cut, inner = line[:-2], line[1:-1], line[2:]
    lost = (cut == 0) & (outer > 0) & (outer < _SOLID * span) & (inner > 5 * outer)
    np.maximum(depth[1:-1], np.where(lost, outer / np.float32(_SECOND_LOBE), 0), out=depth[1:-1])


# ------------------------------------------------------------ masks


def _connected_to_border(mask: MaskArray) -> MaskArray:
    # Here, so that ordinary volumes need no scipy.
    from scipy import ndimage

    labels, count = ndimage.label(mask)
    reached = np.zeros(count + 1, dtype=bool)
    reached[_faces(labels)] = True
    reached[0] = False
    return np.asarray(reached[labels])


def _specks(mask: MaskArray) -> MaskArray:
    """Mark the pieces of a mask that are far smaller than its largest one."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    small = sizes < _SPECK * sizes.max()
    small[0] = False
    return np.asarray(small[labels])


def _inside(mask: MaskArray) -> MaskArray:
    """Leave the voxels that lie two voxels deep; the mask itself where there are none."""
    from scipy import ndimage

    inside = ndimage.binary_erosion(mask, iterations=2)
    return inside if inside.any() else mask


def _surroundings(mask: MaskArray) -> tuple[MaskArray, MaskArray]:
    """Mark what lies within at least `_REACH` voxels of a mask, and the shell twice as thick around that.

    It is done in blocks of two voxels, for speed.
    """
    from scipy import ndimage

    blocks = tuple(-(-n // 2) for n in mask.shape)
    padded = np.zeros([2 * n for n in blocks], dtype=bool)
    padded[tuple(slice(n) for n in mask.shape)] = mask
    folded = padded.reshape([part for n in blocks for part in (n, 2)]).any(axis=(1, 3, 5))
    cube = np.ones((3, 3, 3), dtype=bool)
    near = ndimage.binary_dilation(folded, iterations=_REACH // 2, structure=cube)
    around = ndimage.binary_dilation(near, iterations=_REACH, structure=cube) & ~near
    return _unfolded(near, mask.shape), _unfolded(around, mask.shape)


def _unfolded(blocks: MaskArray, shape: tuple[int, ...]) -> MaskArray:
    for axis in range(3):
        blocks = np.repeat(blocks, 2, axis=axis)
    return blocks[tuple(slice(n) for n in shape)]
