from __future__ import annotations

import numpy as np

from app.training.data.drawn_alike import DrawnAlike


def test_a_group_shares_what_is_drawn():
    alike, plain = DrawnAlike(np.random.default_rng(3), 3), np.random.default_rng(3)
    for size, smaller in ((6, 2), ((6, 4), (2, 4))):
        np.testing.assert_array_equal(alike.uniform(-1, 1, size)[::3], plain.uniform(-1, 1, smaller))
        np.testing.assert_array_equal(alike.random(size)[1::3], plain.random(smaller))
        np.testing.assert_array_equal(alike.integers(0, 9, size)[2::3], plain.integers(0, 9, smaller))
    assert alike.integers(2**31) == plain.integers(2**31)
