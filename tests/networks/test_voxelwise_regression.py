from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.sequence_subsets import subset_key
from app.networks.voxelwise_regression import VoxelwiseRegression, exponents, monomials


def test_monomials_are_all_products_up_to_the_third_degree():
    values = np.array([[2.0], [3.0], [5.0]], dtype=np.float32)
    expected = [float(np.prod([values[i, 0] for i in term])) for term in exponents(3)]
    assert len(expected) == 20
    np.testing.assert_allclose(monomials(values)[:, 0], expected)


def _regression(row, contrast=0.0, inputs=("t1c", "t1n"), target="t2w"):
    return VoxelwiseRegression({subset_key(inputs, target): tuple(row)}, (-2.0, 2.0), contrast)


def _identity(variables=2):
    """Coefficients of a polynomial that is its first variable."""
    return [float(term == (0,)) for term in exponents(variables)]


class TestPredict:
    SHAPE = (3, 4, 5)

    def _inputs(self, scale=1.0):
        random = np.random.default_rng(0)
        return {m: (scale * random.normal(size=self.SHAPE)).astype(np.float32) for m in ("t1c", "t1n")}

    def test_outside_the_brain_it_is_zero(self):
        brain = np.zeros(self.SHAPE, bool)
        brain[1] = True
        predicted = _regression(_identity()).predict(self._inputs(), "t2w", brain)
        assert predicted.dtype == np.float32
        assert not predicted[~brain].any()
        assert predicted[brain].mean() == pytest.approx(0, abs=1e-6)

    def test_an_empty_brain_gives_an_empty_volume(self):
        assert not _regression(_identity()).predict(self._inputs(), "t2w", np.zeros(self.SHAPE, bool)).any()

    @settings(max_examples=10, deadline=None)
    @given(st.floats(0, 1))
    def test_contrast_takes_its_share_of_the_way_to_a_deviation_of_one(self, contrast):
        brain, inputs = np.ones(self.SHAPE, bool), self._inputs(0.3)
        flat = _regression(_identity()).predict(inputs, "t2w", brain).std()
        spread = _regression(_identity(), contrast).predict(inputs, "t2w", brain).std()
        assert spread == pytest.approx(flat ** (1 - contrast), rel=1e-3)

    def test_inputs_are_held_inside_their_range(self):
        brain, inputs = np.ones(self.SHAPE, bool), self._inputs()
        far = {m: np.where(v > 1, 99, v).astype(np.float32) for m, v in inputs.items()}
        near = {m: np.where(v > 1, 2, v).astype(np.float32) for m, v in inputs.items()}
        regression = _regression(np.linspace(-1, 1, len(exponents(2))))
        np.testing.assert_array_equal(regression.predict(far, "t2w", brain), regression.predict(near, "t2w", brain))

    def test_the_order_of_the_inputs_does_not_matter(self):
        inputs = self._inputs()
        regression = _regression(np.linspace(-1, 1, len(exponents(2))))
        brain = np.ones(self.SHAPE, bool)
        swapped = dict(reversed(inputs.items()))
        np.testing.assert_array_equal(
            regression.predict(inputs, "t2w", brain), regression.predict(swapped, "t2w", brain)
        )


@given(st.integers(1, 3))
def test_monomials_of_ones_are_ones_and_the_constant_comes_first(variables):
    assert exponents(variables)[0] == ()
    assert (monomials(np.ones((variables, 4), np.float32)) == 1).all()


def test_its_file_is_a_round_trip():
    regression = _regression(_identity())
    form = {"coefficients": dict(regression.coefficients), "input_range": [-2.0, 2.0], "contrast": 0.0}
    assert VoxelwiseRegression.from_json(json.loads(json.dumps(form))) == regression
