from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.errors import CaseError
from app.inference.postprocessing import check_finite, clean, lift_highlights, stretch
from app.preprocessing.normalization import Intensity, denormalize


def test_background_vote_and_clean_values():
    scores = np.array([1.0, np.nan, np.inf, -50.0, 2.0], dtype=np.float32).reshape(1, 1, 5)
    foreground = np.array([True, True, True, True, False]).reshape(1, 1, 5)
    intensity = Intensity(mean=300.0, std=100.0)
    cleaned = clean(scores, foreground, intensity, background=-1.0)
    np.testing.assert_array_equal(cleaned.ravel(), [1, -3, -3, -3, -1])
    np.testing.assert_array_equal(denormalize(cleaned, intensity, foreground).ravel(), [400, 0, 0, 0, 0])


def test_a_stray_voxel_is_mended_and_a_broken_volume_refused():
    scores = np.zeros((10, 10, 20), dtype=np.float32)
    brain = np.zeros(scores.shape, bool)
    brain[:, :, :10] = True
    scores[:, :, 10:] = np.nan
    check_finite(scores, brain, "some")
    scores[0, 0, 0] = np.inf
    check_finite(scores, brain, "some")
    scores[0, 0, 1] = np.nan
    with pytest.raises(CaseError, match=r"'some' made values that are not finite in 0\.2 %"):
        check_finite(scores, brain, "some")


@given(contrast=st.floats(0.05, 1), mean=st.floats(-2, 2), std=st.floats(0.2, 3))
def test_stretch_goes_its_share_of_the_way_to_a_scans_spread(contrast, mean, std):
    brain = np.random.default_rng(0).normal(size=(6, 7, 8))
    scores = (mean + std * (brain - brain.mean()) / brain.std()).astype(np.float32)
    everywhere = np.ones(scores.shape, bool)
    found = stretch(scores, everywhere, contrast)
    assert found.std() == pytest.approx(std ** (1 - contrast), rel=1e-3)
    assert found.mean() == pytest.approx((1 - contrast) * mean / std**contrast, abs=1e-3)
    # The order of voxels is what a radiologist sees: it may not change.
    assert np.corrcoef(found.ravel(), scores.ravel())[0, 1] == pytest.approx(1)


def test_stretch_measures_the_brain_only_and_leaves_a_flat_one():
    scores = np.array([1.0, 3.0, 1000.0], dtype=np.float32).reshape(1, 1, 3)
    brain = np.array([True, True, False]).reshape(1, 1, 3)
    np.testing.assert_allclose(stretch(scores, brain, 1.0).ravel()[:2], [-1, 1])
    assert stretch(scores, brain, 0.0) is scores
    flat = np.full((1, 1, 3), 0.7, dtype=np.float32)
    assert stretch(flat, brain, 1.0) is flat


@given(factor=st.floats(0.1, 3), seed=st.integers(0, 100))
def test_highlights_alone_are_lifted_and_keep_their_order(factor, seed):
    scores = np.random.default_rng(seed).normal(size=(5, 6, 7)).astype(np.float32)
    brain = np.ones(scores.shape, bool)
    brain[0] = False
    lifted, median = lift_highlights(scores, brain, factor), np.median(scores[brain])
    below = ~brain | (scores <= median)
    np.testing.assert_array_equal(lifted[below], scores[below])
    np.testing.assert_allclose(lifted[~below] - median, factor * (scores[~below] - median), rtol=1e-4, atol=1e-5)
    assert (np.diff(lifted[brain][np.argsort(scores[brain])]) >= 0).all()


def test_highlights_stay_where_nothing_is_asked_or_there_is_no_brain():
    scores = np.array([0.0, 1.0, 5.0], dtype=np.float32).reshape(1, 1, 3)
    assert lift_highlights(scores, scores > 0, 1.0) is scores
    assert lift_highlights(scores, np.zeros(scores.shape, bool), 1.5) is scores
    # The median of an even number lies between two: 3 of 1 and 5.
    np.testing.assert_array_equal(lift_highlights(scores, scores > 0, 1.5).ravel(), [0, 1, 6])


@pytest.mark.parametrize("stray", [np.nan, np.inf, -np.inf])
def test_a_stray_voxel_changes_no_other(stray):
    scores = np.random.default_rng(0).normal(size=(6, 7, 8)).astype(np.float32)
    spoilt, brain = scores.copy(), np.ones(scores.shape, bool)
    spoilt[0, 0, 0] = stray
    brain[0, 0, 0] = False
    for change in (stretch, lift_highlights):
        expected = change(scores, brain, 0.5)
        brain_too = np.ones(scores.shape, bool)
        found = change(spoilt, brain_too, 0.5)
        np.testing.assert_allclose(found[brain], expected[brain], atol=1e-6)
        nothing = np.full((1, 1, 2), stray, dtype=np.float32)
        assert change(nothing, np.ones(nothing.shape, bool), 0.5) is nothing
