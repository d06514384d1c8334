from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.evaluation.metrics.calibration import calibrate


def _laplace(scale: np.ndarray, seed: int = 0) -> np.ndarray:
    return np.abs(np.random.default_rng(seed).laplace(0, scale))


class TestCalibrate:
    def test_a_perfectly_calibrated_case_lies_on_the_diagonal(self):
        expected = np.random.default_rng(1).uniform(0.1, 2, 200_000)
        found = calibrate(expected, _laplace(expected))
        np.testing.assert_allclose(found.observed, found.expected, rtol=0.05)
        assert found.error < 0.02
        assert found.correlation > 0.3
        assert (np.diff(found.expected) > 0).all()

    def test_one_that_is_twice_too_sure_is_told_so(self):
        scale = np.random.default_rng(1).uniform(0.1, 2, 100_000)
        found = calibrate(scale / 2, _laplace(scale))
        np.testing.assert_allclose(found.observed, 2 * found.expected, rtol=0.05)
        assert found.error == pytest.approx(scale.mean() / 2, rel=0.03)

    def test_by_hand(self):
        found = calibrate(np.array([4.0, 1, 2, 3]), np.array([0.0, 1, 3, 5]), bins=2)
        np.testing.assert_allclose(found.expected, [1.5, 3.5])
        np.testing.assert_allclose(found.observed, [2.0, 2.5])
        assert found.error == pytest.approx(0.75)
        assert found.counts.tolist() == [2, 2]
        # Ranks 4 1 2 3 against 1 2 3 4.
        assert found.correlation == pytest.approx(-0.2)

    @given(st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=10, max_size=60), st.randoms())
    def test_laws(self, pairs, random):
        values = np.array(pairs)
        found = calibrate(values[:, 0], values[:, 1])
        assert found.counts.sum() == len(pairs)
        assert found.counts.max() - found.counts.min() <= 1
        np.testing.assert_allclose((found.expected * found.counts).sum(), values[:, 0].sum(), atol=1e-9)
        np.testing.assert_allclose((found.observed * found.counts).sum(), values[:, 1].sum(), atol=1e-9)
        assert (np.diff(found.expected) >= -1e-12).all()
        # The bins' differences may cancel within a bin, never beyond: not less than the difference of the means.
        gap = abs(values[:, 0].mean() - values[:, 1].mean())
        assert gap - 1e-9 <= found.error <= np.abs(values[:, 0] - values[:, 1]).mean() + 1e-9
        random.shuffle(pairs)
        if len({e for e, _ in pairs}) == len(pairs):
            again = np.array(pairs)
            assert calibrate(again[:, 0], again[:, 1]).error == pytest.approx(found.error)

    def test_ranks_are_those_of_scipy(self):
        from scipy.stats import spearmanr

        random = np.random.default_rng(0)
        one, other = random.integers(0, 20, (2, 500)).astype(float)
        assert calibrate(one, other).correlation == pytest.approx(spearmanr(one, other).statistic)
        assert np.isnan(calibrate(np.ones(20), one[:20]).correlation)

    @pytest.mark.parametrize(
        "expected,observed",
        [(np.ones(9), np.ones(9)), (np.ones(20), np.ones(19)), (np.full(20, np.nan), np.ones(20)),
         (np.ones(20), -np.ones(20))],
    )  # fmt: skip
    def test_what_cannot_be(self, expected, observed):
        with pytest.raises(ValueError):
            calibrate(expected, observed)
