"""How views become one volume: the laws of the mean, the median and the mean weighted by confidence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.core.config import FUSIONS
from app.core.constants import VIEWS
from app.inference.slicewise.view_fusion import TtaPass, ViewFusion, tta_passes, view_weights
from app.preprocessing.slices import Canvas, crop, place_window

#: Of unlike sizes, and not as large as the brain, so that windows grow and odd margins occur.
CANVAS = Canvas({"axial": (48, 48), "sagittal": (48, 32), "coronal": (32, 48)})
SCORES = st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=3)
ERRORS = st.lists(st.floats(0.03125, 8, width=32), min_size=3, max_size=3)


def _volumes(values, shape=(2, 2, 2)):
    return [torch.full(shape, v, dtype=torch.float32) for v in values]


def _fuse(method, volumes, errors, weights=None):
    fusion = ViewFusion(method)
    for i, (view, volume, error) in enumerate(zip(VIEWS, volumes, errors, strict=False)):
        fusion.add(view, volume, error, 1 / len(volumes) if weights is None else weights[i])
    fused = fusion.result()
    return fused.volume, fused.error


class TestDisagreement:
    @given(SCORES)
    def test_it_is_the_deviation_of_the_views(self, values):
        fusion = ViewFusion("median")
        for view, volume in zip(VIEWS, _volumes(values), strict=True):
            fusion.add(view, volume, None, 1 / 3)
            # Not of the mirrored exam.
            fusion.add(view, volume + 7, None, 1 / 3, is_mirrored=True)
        assert fusion.result().disagreement == pytest.approx(np.std(values), abs=1e-5)

    def test_it_is_that_of_the_brain(self):
        brain = np.zeros((2, 2, 2), bool)
        brain[0, 0] = True
        one, two = torch.zeros(2, 2, 2), torch.full((2, 2, 2), 9.0)
        two[0, 0] = 2.0
        fusion = ViewFusion("mean")
        fusion.add("axial", one, None, 0.5)
        fusion.add("coronal", two, None, 0.5)
        assert fusion.result(brain).disagreement == pytest.approx(1.0)

    def test_one_view_agrees_with_nobody(self):
        fusion = ViewFusion("mean")
        fusion.add("axial", torch.zeros(2, 2, 2), None, 1.0)
        assert fusion.result().disagreement is None


class TestFusion:
    @given(SCORES, st.floats(0.03125, 8, width=32))
    def test_equal_confidence_is_the_mean(self, values, error):
        volume, expected_error = _fuse("confidence", _volumes(values), _volumes([error] * 3))
        np.testing.assert_allclose(volume, np.mean(values), atol=1e-5)
        # Views of one network err together: three of them are not surer than one.
        np.testing.assert_allclose(expected_error, error, rtol=1e-3)

    @given(SCORES, ERRORS)
    def test_weights_are_inverse_squares_that_sum_to_one(self, values, errors):
        volume, expected_error = _fuse("confidence", _volumes(values), _volumes(errors))
        weights = 1 / (np.square(errors) + 1e-6)
        weights /= weights.sum()
        np.testing.assert_allclose(volume, weights @ np.array(values), atol=1e-4)
        np.testing.assert_allclose(expected_error, np.sqrt(weights @ (np.square(errors) + 1e-6)), rtol=1e-4)
        assert min(values) - 1e-5 <= volume.min() <= max(values) + 1e-5

    @given(SCORES, st.integers(0, 2))
    def test_a_view_that_is_certain_decides(self, values, sure):
        errors = [100.0] * 3
        errors[sure] = 1e-3
        volume, expected_error = _fuse("confidence", _volumes(values), _volumes(errors))
        np.testing.assert_allclose(volume, values[sure], atol=1e-4)
        assert expected_error.max() < 0.01

    @given(SCORES, ERRORS)
    def test_the_order_of_the_views_does_not_matter(self, values, errors):
        for method in FUSIONS:
            one = _fuse(method, _volumes(values), _volumes(errors))
            other = _fuse(method, _volumes(values[::-1]), _volumes(errors[::-1]))
            np.testing.assert_allclose(one, other, atol=1e-4, rtol=1e-4)

    @given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=3))
    def test_the_median(self, values):
        volume, expected_error = _fuse("median", _volumes(values), [None] * 3)
        np.testing.assert_array_equal(volume, np.float32(np.median(np.float32(values))))
        assert expected_error is None

    @given(SCORES)
    def test_the_mean_is_by_the_weights_that_are_given(self, values):
        volume, _ = _fuse("mean", _volumes(values), [None] * 3, (0.25, 0.75, 0.0))
        np.testing.assert_allclose(volume, 0.25 * values[0] + 0.75 * values[1], atol=1e-5)

    @pytest.mark.parametrize("method", FUSIONS)
    def test_one_view_is_itself_to_the_bit(self, method):
        random = np.random.default_rng(0)
        volume, error = (random.random((5, 6, 7), dtype=np.float32) for _ in range(2))
        fused, expected_error = _fuse(method, [torch.from_numpy(volume)], [torch.from_numpy(error)])
        np.testing.assert_array_equal(fused, volume)
        np.testing.assert_allclose(
            expected_error, np.sqrt(error**2 + (1e-6 if method == "confidence" else 0)), rtol=1e-5
        )

    @pytest.mark.parametrize("method", FUSIONS)
    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_numpy_gives_the_same_bits(self, method, count):
        random = np.random.default_rng(0)
        volumes, errors = ([random.random((9, 8, 7), dtype=np.float32) for _ in range(count)] for _ in range(2))
        fused, error = _fuse(method, *([torch.from_numpy(v) for v in vs] for vs in (volumes, errors)))
        expected, expected_error = _plain(method, volumes, errors)
        np.testing.assert_array_equal(fused, expected)
        np.testing.assert_array_equal(error, expected_error)

    def test_what_is_given_is_not_changed(self):
        for method in FUSIONS:
            volumes, errors = _volumes([1.0, 2.0, 4.0]), _volumes([0.5, 1.0, 2.0])
            _fuse(method, volumes, errors)
            assert [v.max().item() for v in volumes + errors] == [1, 2, 4, 0.5, 1, 2]

    @given(SCORES, ERRORS, ERRORS)
    def test_it_does_not_matter_whether_copies_are_fused_first(self, values, errors, again):
        at_once, views = ViewFusion("confidence"), ViewFusion("confidence")
        for i, view in enumerate(VIEWS):
            pair = ViewFusion("confidence")
            for error, shift in ((errors[i], 0.0), (again[i], 1.0)):
                (volume,), (doubt,) = _volumes([values[i] + shift]), _volumes([error])
                at_once.add(view, volume, doubt, 1 / 6)
                pair.add(view, volume, doubt, 0.5)
            fused = pair.result()
            views.add(view, torch.from_numpy(fused.volume), torch.from_numpy(fused.error), 1 / 3)
        one, other = at_once.result(), views.result()
        # Up to the least error, which is added once more on the way.
        np.testing.assert_allclose(one.volume, other.volume, atol=1e-2)
        np.testing.assert_allclose(np.square(one.error), np.square(other.error), rtol=1e-2)


def _plain(method, volumes, errors):
    """The three formulas in numpy, operation by operation."""
    part = np.float32(1 / len(volumes))
    total = float(part) * len(volumes)
    if method == "confidence":
        fused, weights = volumes[0], part * (1 / (errors[0] * errors[0] + np.float32(1e-6)))
        for volume, error in zip(volumes[1:], errors[1:], strict=True):
            weight = part * (1 / (error * error + np.float32(1e-6)))
            weights = weights + weight
            fused = fused + (weight / weights) * (volume - fused)
        return fused, np.sqrt(np.float32(total) * (1 / weights))
    squares = np.zeros_like(errors[0])
    for error in errors:
        squares += part * (error * error)
    if method == "median":
        return np.median(volumes, axis=0), np.sqrt(squares)
    fused = np.zeros_like(volumes[0])
    for volume in volumes:
        fused += part * volume
    return fused, np.sqrt(squares)


class TestPasses:
    @pytest.fixture
    def foreground(self):
        foreground = np.zeros((40, 44, 36), dtype=bool)
        foreground[5:31, 8:40, 4:30] = True
        return foreground

    def test_a_mirrored_copy_counts_half(self, foreground):
        passes = tta_passes(foreground, VIEWS, CANVAS, flip=True)
        assert [[w.view for w in p.windows] for p in passes] == [list(VIEWS), ["axial", "coronal"]]
        assert view_weights(passes) == pytest.approx({"axial": 1 / 6, "sagittal": 1 / 3, "coronal": 1 / 6})
        assert view_weights([TtaPass(p.windows) for p in passes[:1]])["axial"] == pytest.approx(1 / 3)
        assert len(tta_passes(foreground, ("sagittal",), CANVAS, flip=True)) == 1

    def test_thinned_out_the_mirrored_slices_lie_between_the_others(self, foreground):
        plain, mirrored = tta_passes(foreground, VIEWS, CANVAS, flip=True, step=2)
        for window in mirrored.windows:
            (other,) = (w for w in plain.windows if w.view == window.view)
            every = place_window(foreground, window.view, CANVAS).slices
            assert sorted({*window.slices, *other.slices}) == list(every)
            assert {*window.slices} & {*other.slices} <= {every[0], every[-1]}

    @pytest.mark.parametrize("less", [0, 1, 7])
    def test_a_mirrored_window_shows_the_mirrored_brain(self, foreground, less):
        """Its slices with their rows backwards are those of the mirrored exam's own window."""
        foreground = foreground[less:]
        volume = np.random.default_rng(0).random(foreground.shape, dtype=np.float32)
        for window in tta_passes(foreground, VIEWS, CANVAS, flip=True)[1].windows:
            expected = crop(volume[::-1], place_window(foreground[::-1], window.view, CANVAS), -1.0)
            np.testing.assert_array_equal(crop(volume, window, -1.0)[:, ::-1], expected)
