from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from app.inference.fine_detail import strengthen_detail

RANDOM = np.random.default_rng(0)
SHAPE = (24, 20, 22)


def _brain() -> np.ndarray:
    brain = np.zeros(SHAPE, bool)
    brain[4:-3, 3:-5, 5:-4] = True
    return brain


def test_far_from_the_rim_it_is_an_unsharp_mask():
    volume, brain = RANDOM.normal(size=SHAPE).astype(np.float32), np.ones(SHAPE, bool)
    smooth = gaussian_filter(volume.astype(np.float64), 1.2, mode="constant", radius=4)
    expected = smooth + 1.3 * (volume - smooth)
    inner = (slice(5, -5),) * 3
    np.testing.assert_allclose(strengthen_detail(volume, brain, 1.3)[inner], expected[inner], atol=1e-5)


def test_a_plain_brain_stays_plain_to_its_rim():
    brain = _brain()
    volume = np.where(brain, np.float32(1.5), np.float32(-4))
    np.testing.assert_allclose(strengthen_detail(volume, brain, 2.0), volume, atol=1e-5)


def test_outside_the_brain_nothing_changes_and_nothing_there_counts():
    brain, volume = _brain(), RANDOM.normal(size=SHAPE).astype(np.float32)
    other = np.where(brain, volume, np.float32(np.nan))
    one, two = strengthen_detail(volume, brain, 1.5), strengthen_detail(other, brain, 1.5)
    assert np.array_equal(one[~brain], volume[~brain])
    assert np.array_equal(one[brain], two[brain])
    assert not np.array_equal(one[brain], volume[brain])


def test_a_stray_voxel_that_is_no_number_harms_no_other():
    brain, volume = _brain(), np.full(SHAPE, np.float32(1.5))
    volume[10, 10, 10] = np.inf
    made = strengthen_detail(volume, brain, 2.0)
    np.testing.assert_allclose(made, volume, atol=1e-5)


@given(st.floats(0, 3))
def test_it_is_linear_in_its_factor(factor):
    brain, volume = _brain(), np.linspace(-1, 1, np.prod(SHAPE), dtype=np.float32).reshape(SHAPE) ** 3
    none, twice = strengthen_detail(volume, brain, 0.0), strengthen_detail(volume, brain, 2.0)
    expected = none + factor / 2 * (twice - none)
    np.testing.assert_allclose(strengthen_detail(volume, brain, factor), expected, atol=1e-5)


@pytest.mark.parametrize(("brain", "factor"), [(_brain(), 1.0), (np.zeros(SHAPE, bool), 2.0)])
def test_with_nothing_to_do_it_is_the_volume_itself(brain, factor):
    volume = RANDOM.normal(size=SHAPE).astype(np.float32)
    assert strengthen_detail(volume, brain, factor) is volume


def test_a_brain_thinner_than_the_blur():
    brain, volume = np.zeros(SHAPE, bool), RANDOM.normal(size=SHAPE).astype(np.float32)
    brain[3:5, 4, 6:12] = True
    assert np.isfinite(strengthen_detail(volume, brain, 1.5)).all()
