from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.inference.sliding_window import gaussian_weights, slide, starts
from app.preprocessing.foreground import bounding_box

sides = st.tuples(*[st.integers(3, 14)] * 3)
windows = st.tuples(*[st.integers(2, 9)] * 3)
overlaps = st.floats(0, 0.8)


def blob(shape, seed: int):
    """A few true voxels, one at least."""
    random = np.random.default_rng(seed)
    found = random.random(shape) < 0.1
    found[tuple(random.integers(0, n) for n in shape)] = True
    return found


class TestSlide:
    @settings(max_examples=40, deadline=None)
    @given(sides, windows, overlaps, st.integers(0, 99))
    def test_windows_that_change_nothing_give_the_volume_back(self, shape, window, overlap, seed):
        random = np.random.default_rng(seed)
        volumes = random.normal(size=(2, *shape)).astype(np.float32)
        foreground = blob(shape, seed)
        made = slide(volumes, lambda seen: seen, 2, window, foreground, -1.0, overlap)
        box = bounding_box(foreground)
        np.testing.assert_allclose(made[(slice(None), *box)], volumes[(slice(None), *box)], atol=1e-5)

    def test_beyond_the_volume_there_is_the_fill(self):
        seen = []
        volume = np.ones((1, 3, 3, 3), dtype=np.float32)
        slide(volume, lambda w: seen.append(w) or w, 1, (5, 5, 5), np.ones((3, 3, 3), bool), -7.0)
        (window,) = seen
        assert window.shape == (1, 5, 5, 5)
        assert (window[0, 1:4, 1:4, 1:4] == 1).all()
        assert (window == -7).sum() == 125 - 27

    def test_where_no_window_reaches_it_is_zero(self):
        foreground = np.zeros((20, 8, 8), bool)
        foreground[2:5] = True
        made = slide(np.ones((1, 20, 8, 8), np.float32), lambda w: w, 1, (4, 8, 8), foreground, 0.0)
        assert (made[0, 2:5] == 1).all()
        assert (made[0, 10:] == 0).all()

    def test_a_window_counts_most_in_its_middle(self):
        # Two windows, the first says 0, the second 1: between them it rises evenly.
        answers = iter([0.0, 1.0])
        made = slide(np.zeros((1, 12, 4, 4), np.float32), lambda w: np.full_like(w, next(answers)), 1, (8, 4, 4),
                     np.ones((12, 4, 4), bool), 0.0, 0.5)[0, :, 2, 2]  # fmt: skip
        assert (np.diff(made) >= -1e-6).all()
        assert made[0] == 0
        assert made[-1] == 1
        assert made[5] + made[6] == pytest.approx(1, abs=1e-5)

    def test_an_empty_foreground_is_refused(self):
        with pytest.raises(ValueError, match="empty"):
            slide(np.zeros((1, 4, 4, 4), np.float32), lambda w: w, 1, (2, 2, 2), np.zeros((4, 4, 4), bool), 0.0)


class TestStarts:
    @given(sides, windows, overlaps, st.integers(0, 99))
    def test_they_cover_the_box_with_the_overlap_and_are_the_fewest(self, shape, window, overlap, seed):
        box = bounding_box(blob(shape, seed))
        corners = list(starts(box, window, overlap))
        for axis, (side, length) in enumerate(zip(box, window, strict=True)):
            row = sorted({c[axis] for c in corners})
            extent, step = side.stop - side.start, max(1, int(length * (1 - overlap)))
            assert row[0] <= side.start
            assert row[-1] + length >= side.stop
            assert all(0 < b - a <= step for a, b in pairwise(row))
            # One fewer could not reach so far.
            assert len(row) == 1 or length + (len(row) - 2) * step < extent
            if extent >= length:
                assert row[0] == side.start
                assert row[-1] + length == side.stop
        assert len(corners) == len(set(corners))

    def test_the_refiners_window_takes_eight_for_a_brain(self):
        assert len(list(starts((slice(40, 184), slice(20, 196), slice(0, 144)), (80, 96, 80), 0.1))) == 8


class TestWeights:
    @given(windows)
    def test_they_are_symmetric_positive_and_one_in_the_middle(self, window):
        weights = gaussian_weights(window)
        assert weights.shape == window
        assert weights.max() == 1
        assert weights.min() > 0
        np.testing.assert_allclose(weights, weights[::-1, ::-1, ::-1], rtol=1e-5)
        assert weights[tuple(n // 2 for n in window)] == 1
