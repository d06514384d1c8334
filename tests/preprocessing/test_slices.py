from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.constants import VIEWS
from app.preprocessing.slices import (
    CLOSE_RIM,
    CLOSE_SIDE,
    Canvas,
    Window,
    close_span,
    crop,
    middle_slices,
    paste,
    place_window,
    plan_window,
    stack_slices,
    thin_out,
    unstack_slices,
)

shapes = st.tuples(*[st.integers(32, 70)] * 3)


def _canvas(rows: int, columns: int, centre: str = "brain") -> Canvas:
    return Canvas(dict.fromkeys(VIEWS, (rows, columns)), centre)  # type: ignore[arg-type]


def _blob(shape, seed) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    low = [int(random.integers(0, n - 10)) for n in shape]
    high = [int(random.integers(a + 5, n + 1)) for a, n in zip(low, shape, strict=True)]
    volume = np.zeros(shape, dtype=np.float32)
    box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    volume[box] = random.uniform(1, 2, volume[box].shape)
    return volume, volume > 0


@settings(max_examples=40, deadline=None)
@given(shape=shapes, seed=st.integers(0, 999), view=st.sampled_from(VIEWS), centre=st.sampled_from(["brain", "volume"]))
def test_crop_and_paste_lose_nothing(shape, seed, view, centre):
    volume, brain = _blob(shape, seed)
    window = place_window(brain, view, _canvas(32, 48, centre))
    slices = crop(volume, window, background=0.0)
    assert slices.shape[1] % 16 == 0
    assert slices.shape[2] % 16 == 0
    assert len(slices) == len(window.slices)
    np.testing.assert_array_equal(paste(slices, window, shape, 0.0), volume)


@settings(max_examples=20, deadline=None)
@given(shape=shapes, seed=st.integers(0, 99), view=st.sampled_from(VIEWS))
def test_stacking_is_a_round_trip(shape, seed, view):
    volume, _ = _blob(shape, seed)
    np.testing.assert_array_equal(unstack_slices(stack_slices(volume, view), view), volume)


def test_window_keeps_to_the_canvas_and_is_centred():
    brain = np.zeros((100, 100, 100), dtype=bool)
    brain[40:60, 30:50, 10:20] = True
    window = place_window(brain, "axial", _canvas(48, 32))
    assert window.size == (48, 32)
    assert window.start == (26, 24)
    assert window.slices == tuple(range(10, 20))


def test_window_grows_only_for_a_larger_brain():
    brain = np.ones((40, 70, 40), dtype=bool)
    assert place_window(brain, "axial", _canvas(48, 64)).size == (48, 80)


def test_released_networks_get_their_own_padding():
    brain = np.zeros((240, 240, 155), dtype=bool)
    brain[100:150, 90:160, 20:130] = True
    window = place_window(brain, "sagittal", _canvas(240, 240, "volume"))
    assert window.start == (0, -42)
    assert window.size == (240, 240)


def test_empty_foreground_lists_no_slice():
    window = place_window(np.zeros((40, 40, 40), dtype=bool), "axial", _canvas(48, 48))
    assert window.slices == ()


@pytest.mark.parametrize(
    "count,step,kept", [(5, 2, (3, 5, 7)), (6, 2, (3, 5, 7, 8)), (6, 4, (3, 7, 8)), (1, 3, (3,)), (0, 2, ())]
)
def test_thinned_out_the_ends_stay(count, step, kept):
    window = Window("axial", (0, 0), (16, 16), tuple(range(3, 3 + count)))
    thin = thin_out(window, step)
    assert (thin.slices, thin.step) == (kept, step)
    assert thin_out(window, 1) is window


def test_thinned_out_both_sides_of_a_gap_stay():
    window = Window("axial", (0, 0), (16, 16), (0, 1, 2, 3, 9, 10, 11, 12))
    assert thin_out(window, 2).slices == (0, 2, 3, 9, 11, 12)
    assert thin_out(window, 2, first=1).slices == (0, 1, 3, 9, 10, 12)


@pytest.mark.parametrize(
    "slices,count,middles",
    [
        ((3, 4, 5, 6), 1, (3, 4, 5, 6)),
        ((3, 4, 5, 6), 3, (4, 7)),
        ((0, 1, 2, 8), 3, (1, 9)),
        ((), 3, ()),
        ((5,), 5, (7,)),
    ],
)
def test_every_slice_lies_within_one_pass(slices, count, middles):
    assert middle_slices(slices, count) == middles


def test_canvas_must_be_a_multiple_of_16():
    with pytest.raises(ValueError, match="multiples of 16"):
        _canvas(40, 48)


def test_a_close_window_divides_the_canvas():
    with pytest.raises(ValueError, match="neither 0 nor a divisor of 16"):
        Canvas(dict.fromkeys(VIEWS, (48, 48)), close=5)


@pytest.mark.parametrize(
    "filled,rim,expected",
    [
        # 80 of brain and twice 4 around: 88.
        ((60, 140), 4, (56, 144)),
        # 89 need 96: 4 more before, 3 after.
        ((60, 141), 4, (52, 148)),
        # At the edge the window ends.
        ((0, 80), 4, (0, 88)),
        ((95, 175), 4, (88, 176)),
        # Never smaller than the least side, never larger than the window.
        ((30, 40), 4, (3, 67)),
        ((3, 173), 4, (0, 176)),
        (None, 4, (0, 176)),
        ((60, 140), 0, (60, 140)),
    ],
)
def test_a_close_span_holds_the_brain_and_a_rim(filled, rim, expected):
    lines = np.zeros(176, np.bool_)
    if filled is not None:
        lines[slice(*filled)] = True
    assert close_span(lines, 8, rim) == slice(*expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), view=st.sampled_from(VIEWS), step=st.integers(1, 3), first=st.integers(0, 1))
def test_close_windows_hold_all_slices_and_what_lies_between(seed, view, step, first):
    _, brain = _blob((100, 110, 90), seed)
    canvas = Canvas(dict.fromkeys(VIEWS, (96, 112)), close=8)
    window = plan_window(brain, view, canvas, step, first % step)
    assert [i for part in window.parts for i in part.slices] == list(window.slices)
    stack = stack_slices(brain, view)
    for part in window.parts:
        assert all(n % 8 == 0 and n >= CLOSE_SIDE for n in part.size)
        assert all(a <= b and b + n <= a + m for a, b, n, m in
                   zip(window.start, part.start, part.size, window.size, strict=True))  # fmt: skip
        near = range(part.slices[0] - step + 1, part.slices[-1] + step)
        for index in (i for i in near if 0 <= i < len(stack)):
            rows, columns = np.nonzero(stack[index])
            for where, start, size, length in zip((rows, columns), part.start, part.size, stack.shape[1:], strict=True):
                if len(where):
                    # The rim is there unless the brain's window ends.
                    assert where.min() - start >= min(CLOSE_RIM, where.min() - max(start, 0))
                    assert start + size > where.max()
                    assert start <= where.min() < length


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), view=st.sampled_from(VIEWS), odd=st.booleans())
def test_the_mirrored_brain_has_the_same_close_windows(seed, view, odd):
    """Their slices, rows backwards where the view has left and right."""
    _, brain = _blob((100 + odd, 110, 90), seed)
    canvas = Canvas(dict.fromkeys(VIEWS, (96, 112)), close=8)
    parts, mirrored = (plan_window(b, view, canvas).parts for b in (brain, brain[::-1]))
    if view == "sagittal":
        mirrored, last = mirrored[::-1], len(brain) - 1
        assert [p.slices for p in parts] == [tuple(last - i for i in p.slices[::-1]) for p in mirrored]
    assert [(p.size, p.start[1]) for p in parts] == [(p.size, p.start[1]) for p in mirrored]
