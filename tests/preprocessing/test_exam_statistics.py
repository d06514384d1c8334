from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.preprocessing.exam_statistics import BRAIN_ML, OF_SEQUENCE, exam_statistics, in_words

SHAPE = (20, 24, 18)


def _noise(seed=0, shape=SHAPE):
    return np.random.default_rng(seed).uniform(50, 150, shape).astype(np.float32)


def _brain(shape=SHAPE):
    brain = np.zeros(shape, bool)
    brain[2:-2, 3:-3, 2:-2] = True
    return brain


def _measured(arrays, spacing=(1.0, 1.0, 1.0)):
    return exam_statistics(arrays, _brain(), spacing)


def test_what_is_measured():
    found = _measured({"t2w": _noise(1), "t1c": _noise(2)}, (1.0, 2.0, 0.5))
    # In challenge order, whatever the order of the arrays.
    assert list(found) == [BRAIN_ML, *(f"t1c {k}" for k in OF_SEQUENCE), *(f"t2w {k}" for k in OF_SEQUENCE),
                           "t1c t2w correlation"]  # fmt: skip
    assert found[BRAIN_ML] == pytest.approx(16 * 18 * 14 / 1000)
    # Of even noise from 50 to 150: mean 100, deviation 100 / sqrt(12), neighbours a third of 100 apart.
    assert found["t1c ratio"] == pytest.approx(12**0.5, rel=0.03)
    assert found["t1c tail"] == pytest.approx(1.495, rel=0.02)
    assert found["t1c dark"] == pytest.approx(0.55, rel=0.03)
    assert found["t1c step"] == pytest.approx(12**0.5 / 3, rel=0.03)
    assert found["t1c coarseness"] == pytest.approx(1, abs=0.06)
    assert abs(found["t1c t2w correlation"]) < 0.05


@given(st.floats(1e-3, 1e3))
def test_scale_does_not_matter(factor):
    one = _measured({"t1c": _noise(1), "t1n": _noise(2)})
    two = _measured({"t1c": _noise(1) * np.float32(factor), "t1n": _noise(2)})
    assert two == pytest.approx(one, rel=1e-3, abs=1e-5)


def test_thick_slices_are_coarse():
    fine = _noise()
    thick = np.repeat(fine[:, :, ::6], 6, axis=2)[:, :, : SHAPE[2]]
    assert _measured({"t1c": thick})["t1c coarseness"] > 3 * _measured({"t1c": fine})["t1c coarseness"]


def test_correlation_of_alike_and_opposite():
    image = _noise()
    found = _measured({"t1c": image, "t1n": 3 * image, "t2w": 200 - image})
    assert found["t1c t1n correlation"] == pytest.approx(1, abs=0.01)
    assert found["t1n t2w correlation"] == pytest.approx(-1, abs=0.02)


def test_beyond_the_brain_nothing_counts():
    image, other = _noise(), _noise()
    other[~_brain()] = 5000
    assert _measured({"t1c": other}) == _measured({"t1c": image})


def test_a_constant_sequence_has_finite_statistics():
    found = _measured({"t1c": np.full(SHAPE, 7, np.float32), "t1n": _noise()})
    assert np.isfinite(list(found.values())).all()


def test_nothing_that_varies_is_as_coarse_as_can_be():
    found = _measured({"t1c": np.full(SHAPE, 7, np.float32)})
    assert found["t1c coarseness"] == 1


@pytest.mark.parametrize("name", list(_measured({"t1c": _noise(), "t2f": _noise(1)})))
def test_each_has_words(name):
    words = in_words(name)
    assert words != name
    assert words.startswith(("the volume", "the correlation of t1c and t2f", "t1c, ", "t2f, "))
