from __future__ import annotations

import numpy as np

from app.networks.voxelwise_regression import exponents, monomials


def test_monomials_are_all_products_up_to_the_third_degree():
    values = np.array([[2.0], [3.0], [5.0]], dtype=np.float32)
    expected = [float(np.prod([values[i, 0] for i in term])) for term in exponents(3)]
    assert len(expected) == 20
    np.testing.assert_allclose(monomials(values)[:, 0], expected)
