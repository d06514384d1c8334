from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.inference.simulation.consistency import even_slices, stripe_ratio

SHAPE = (12, 12, 20)
BRAIN = np.zeros(SHAPE, bool)
BRAIN[2:10, 2:10, 2:18] = True


def _noise(seed=0):
    return np.random.default_rng(seed).normal(scale=0.1, size=SHAPE).astype(np.float32)


def test_flicker_goes():
    volume = _noise() + 0.3 * np.where(np.arange(20) % 2, 1, -1).astype(np.float32)
    even = even_slices(volume, BRAIN)
    assert stripe_ratio(volume, BRAIN) > 3
    assert stripe_ratio(even, BRAIN) < 1
    means = even[2:10, 2:10, 4:16].mean(axis=(0, 1))
    assert np.abs(np.diff(means)).max() < 0.05


@given(st.floats(-0.05, 0.05), st.floats(-0.5, 0.5))
def test_a_trend_along_many_slices_stays(slope, level):
    volume = np.broadcast_to(level + slope * np.arange(20, dtype=np.float32), SHAPE).copy()
    even = even_slices(volume, BRAIN)
    assert np.allclose(even[..., 3:17][BRAIN[..., 3:17]], volume[..., 3:17][BRAIN[..., 3:17]], atol=1e-5)


def test_what_is_outside_stays_and_never_comes_in():
    volume = np.where(BRAIN, np.float32(0.5), np.float32(-1))
    assert np.array_equal(even_slices(volume, BRAIN), volume)


def test_the_ratio_of_noise_is_1():
    assert stripe_ratio(_noise(), BRAIN) == pytest.approx(1, abs=0.1)
    assert math.isnan(stripe_ratio(np.zeros(SHAPE, np.float32), BRAIN))
