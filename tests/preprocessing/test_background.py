"""Backgrounds that other tools leave: each becomes exact 0, and the brain stays; what is 0 already stays to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from app.data.phantom import make_phantom
from app.preprocessing.background import UnclearBackgroundError, clear_background

RANDOM = np.random.default_rng(0)
EXAM = make_phantom((64, 72, 60), seed=5).volumes["t1n"]
BRAIN = EXAM > 0
PEAK = float(np.percentile(EXAM[BRAIN], 99.5))


def _filled(value: float) -> np.ndarray:
    return np.where(BRAIN, EXAM, np.float32(value))


def _rescaled(levels: int) -> np.ndarray:
    """As integers with slope and intercept are read whose zero is no step."""
    low, high = -4.7, float(EXAM.max())
    step = (high - low) / levels
    return (np.rint((EXAM - low) / step) * step + low).astype(np.float32)


def _shifted(order: int, exam: np.ndarray = EXAM) -> np.ndarray:
    """Half a voxel along each axis, by splines."""
    return ndimage.shift(exam, 0.5, order=order).astype(np.float32)


def _third(ringing: np.ndarray) -> np.ndarray:
    """Ringing in a third of the volume, zeros elsewhere."""
    parts = _shifted(1)
    parts[:, :, :20] = ringing[:, :, :20]
    return parts


TRACES = {
    "normal": EXAM + RANDOM.normal(0, 0.003, EXAM.shape).astype(np.float32),
    "weak noise": EXAM + RANDOM.normal(0, 0.002 * PEAK, EXAM.shape).astype(np.float32),
    "positive": EXAM + RANDOM.uniform(0, 0.003, EXAM.shape).astype(np.float32),
    "constant and rounding": np.where(BRAIN, EXAM, -12.3 * (1 + 1e-6 * RANDOM.normal(size=EXAM.shape))),
}
RINGING = {
    "cubic": _shifted(3),
    "quintic": _shifted(5),
    "rounded": np.rint(_shifted(3)),
    "cut off at 0": np.maximum(_shifted(3), 0),
    "rounded and cut off": np.maximum(np.rint(_shifted(3)), 0),
    "around a constant": ndimage.shift(_filled(-30), 0.5, order=3, mode="nearest"),
}


class TestZeroBackground:
    @pytest.mark.parametrize("dtype", [np.float32, np.int16])
    def test_it_stays_as_it_is(self, dtype):
        exam = EXAM.astype(dtype).astype(np.float32)
        cleared, note = clear_background(exam)
        assert cleared is exam
        assert note is None

    def test_dark_brain_few_negatives_and_islands_stay(self):
        exam = EXAM.copy()
        rim = BRAIN & ~ndimage.binary_erosion(BRAIN)
        exam[rim] = RANDOM.integers(1, 20, int(rim.sum()))
        exam[tuple(np.argwhere(BRAIN)[:40].T)] = -5
        exam[3:6, 3:6, 3:6] = 7
        assert clear_background(exam)[0] is exam

    def test_linear_interpolation_leaves_nothing_to_do(self):
        exam = _shifted(1)
        assert clear_background(exam)[0] is exam

    def test_a_head_in_noisy_air_stays(self):
        air = np.hypot(RANDOM.normal(0, 6, EXAM.shape), RANDOM.normal(0, 6, EXAM.shape)).astype(np.float32)
        for head in (EXAM + air, np.rint(EXAM + air), np.where(air > 8, EXAM + air, EXAM)):
            assert clear_background(head)[0] is head

    def test_a_brain_without_any_background_stays(self):
        exam = RANDOM.uniform(100, 1000, (32, 32, 32)).astype(np.float32)
        assert clear_background(exam)[0] is exam


class TestConstants:
    @pytest.mark.parametrize("value", [-1024, -12.3, -0.02, 0.003, 0.05, 5, 30000])
    def test_a_constant_around_the_brain_becomes_zero(self, value):
        cleared, note = clear_background(_filled(value))
        np.testing.assert_array_equal(cleared, EXAM)
        assert f"{value:g} was set to 0" in note

    @pytest.mark.parametrize("levels", [255, 4000, 65535])
    def test_integers_whose_zero_is_no_step(self, levels):
        cleared, note = clear_background(_rescaled(levels))
        assert not cleared[~BRAIN].any()
        assert note is not None
        np.testing.assert_allclose(cleared[BRAIN], EXAM[BRAIN], atol=EXAM.max() / levels)

    def test_an_offset_of_everything_is_subtracted(self):
        cleared, note = clear_background(EXAM + np.float32(1024))
        np.testing.assert_allclose(cleared, EXAM, atol=1e-3)
        assert "subtracted" in note

    def test_a_constant_within_the_brains_range_is_taken_from_the_border_alone(self):
        exam = np.rint(_filled(400))
        cleared, _ = clear_background(exam)
        assert not cleared[~BRAIN].any()
        inner = ndimage.binary_erosion(BRAIN, iterations=2)
        assert np.count_nonzero(cleared[inner] == 0) < 5

    def test_a_constant_that_may_be_the_zero_is_asked_about(self):
        dark = np.where(BRAIN, EXAM + np.float32(40), 0)
        with pytest.raises(UnclearBackgroundError, match="may or may not be the zero of its scale"):
            clear_background(np.where(BRAIN, dark, np.float32(0.1 * PEAK)) + np.float32(0.1 * PEAK))

    def test_padding_below_zero_around_zeros(self):
        exam = EXAM.copy()
        exam[:6] = exam[-6:] = -1000
        cleared, _ = clear_background(exam)
        assert not cleared[:6].any()
        np.testing.assert_array_equal(cleared[6:-6][BRAIN[6:-6]], EXAM[6:-6][BRAIN[6:-6]])


class TestTraces:
    @pytest.mark.parametrize("name", TRACES)
    def test_noise_of_little_amount_becomes_zero(self, name):
        exam = TRACES[name].astype(np.float32)
        before = exam.copy()
        cleared, note = clear_background(exam)
        assert note is not None
        assert not cleared[~BRAIN].any()
        kept = cleared[BRAIN]
        assert np.count_nonzero(kept) > 0.99 * kept.size
        np.testing.assert_array_equal(kept[kept > 0], exam[BRAIN][kept > 0])
        np.testing.assert_array_equal(exam, before)

    @pytest.mark.parametrize("name", RINGING)
    def test_ringing_becomes_zero_and_the_edge_lies_at_half_height(self, name):
        cleared, note = clear_background(RINGING[name].astype(np.float32))
        assert note is not None
        support = ndimage.shift(BRAIN.astype(np.float32), 0.5, order=1)
        # What was cut off and rounded says least of itself.
        left = np.count_nonzero(cleared[support == 0] > 0)
        assert left < (0.001 * np.count_nonzero(BRAIN) if name == "rounded and cut off" else 1)
        inner = ndimage.binary_erosion(support == 1)
        assert np.count_nonzero(cleared[inner] <= 0) < 0.001 * np.count_nonzero(inner)
        truth = np.where(support >= 0.5, np.maximum(_shifted(3), 1), 0)
        mean, expected = cleared[cleared > 0].mean(), truth[truth > 0].mean()
        assert mean == pytest.approx(expected, rel=0.025)
        assert np.count_nonzero(cleared > 0) == pytest.approx(np.count_nonzero(truth), rel=0.06)

    @pytest.mark.parametrize("ringing", [_shifted(3), np.minimum(_shifted(3), _shifted(1))], ids=["both", "negative"])
    def test_ringing_in_a_part_of_the_volume(self, ringing):
        cleared, note = clear_background(_third(ringing))
        support = ndimage.shift(BRAIN.astype(np.float32), 0.5, order=1)
        assert note is not None
        assert np.count_nonzero(cleared[support == 0] > 0) == 0


class TestOtherScales:
    @pytest.mark.parametrize(
        "exam",
        [
            np.where(BRAIN, (EXAM - EXAM[BRAIN].mean()) / EXAM[BRAIN].std(), 0),
            (EXAM - EXAM[BRAIN].mean()) / EXAM[BRAIN].std(),
            np.where(BRAIN, (EXAM - EXAM[BRAIN].mean()) / EXAM[BRAIN].std(), -9),
            (EXAM - EXAM.mean()) / EXAM.std(),
            2 * EXAM / EXAM.max() - 1,
            _shifted(3, np.where(BRAIN, (EXAM - EXAM[BRAIN].mean()) / EXAM[BRAIN].std(), 0)),
            EXAM - EXAM[BRAIN].mean(),
        ],
        ids=["brain", "all by the brain", "filled", "all by all", "-1 to 1", "resampled", "mean subtracted"],
    )
    def test_a_brain_below_zero_is_refused(self, exam):
        with pytest.raises(UnclearBackgroundError, match="negative voxels: it was z-scored or shifted"):
            clear_background(exam.astype(np.float32))


VALUES = st.floats(-(2.0**40), 2.0**40, width=32)


@settings(max_examples=60)
@given(arrays(np.float32, (6, 7, 8), elements=VALUES | st.sampled_from([0.0, 1.0, -1.0]), fill=VALUES))
def test_any_volume_gives_a_volume_or_a_doubt(volume):
    before = volume.copy()
    try:
        cleared, note = clear_background(volume)
    except UnclearBackgroundError:
        return
    np.testing.assert_array_equal(volume, before)
    assert cleared.shape == volume.shape
    assert cleared.dtype == np.float32
    assert (note is None) == (cleared is volume)
