from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.inference.simulation.consistency import even_brightness, even_slices, stripe_ratio

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


class TestBrightness:
    """Two tissues in bands along L, on a brain that fills the box."""

    SHAPE = (24, 24, 30)
    INSIDE = np.ones(SHAPE, bool)
    LESION = np.zeros(SHAPE, bool)
    LESION[4:10, 4:10, 8:14] = True
    WHITE = np.broadcast_to((np.arange(24) // 3 % 2 == 0)[:, None, None], SHAPE)
    TISSUE = np.stack([WHITE, ~WHITE, 0 * WHITE]).astype(np.uint8) * 255
    #: From 0 to 1.
    LIGHT = np.where(WHITE, 0.6, 0.3).astype(np.float32)

    def _even(self, light, tissue=TISSUE):
        return (even_brightness(2 * light - 1, tissue, self.INSIDE, self.LESION) + 1) / 2

    def test_a_scan_without_field_stays(self):
        assert np.allclose(self._even(self.LIGHT), self.LIGHT, atol=1e-3)

    def test_slabs_and_slopes_go(self):
        slab = np.where((np.arange(30) > 10) & (np.arange(30) < 20), 1.4, 1.0)
        slope = np.linspace(0.85, 1.15, 24)[:, None, None]
        uneven = (self.LIGHT * slab * slope).astype(np.float32)
        even = self._even(uneven)
        for tissue in (self.WHITE, ~self.WHITE):
            before, after = (np.std(v[tissue]) / np.mean(v[tissue]) for v in (uneven, even))
            assert after < before / 2

    def test_a_lesion_stays_as_bright_against_its_surroundings(self):
        light = np.where(self.LESION, self.LIGHT * 1.5, self.LIGHT).astype(np.float32)
        even = self._even(light)
        assert np.allclose(even[self.LESION] / self.LIGHT[self.LESION], 1.5, atol=0.01)

    def test_without_tissue_it_stays(self):
        assert np.array_equal(self._even(self.LIGHT, 0 * self.TISSUE), (2 * self.LIGHT - 1 + 1) / 2)

    def test_what_is_outside_the_brain_stays(self):
        inside = self.INSIDE.copy()
        inside[:, :, :3] = False
        volume = 2 * self.LIGHT - 1
        even = even_brightness(volume, self.TISSUE, inside, self.LESION)
        assert np.array_equal(even[~inside], volume[~inside])
