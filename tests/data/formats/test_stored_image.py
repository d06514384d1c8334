from __future__ import annotations

import numpy as np

from app.data.formats.stored_image import new_header


def test_a_new_header_has_the_grid_in_both_forms():
    affine = np.array([[-0.9, 0, 0, 16], [0, 0, 1.1, -20], [0, -1.0, 0, 30], [0, 0, 0, 1]])
    header = new_header((32, 33, 34), np.dtype(np.int16), affine)
    np.testing.assert_allclose(header.get_sform(), affine)
    np.testing.assert_allclose(header.get_qform(), affine, atol=1e-6)
    np.testing.assert_allclose(header.get_zooms(), (0.9, 1.0, 1.1), rtol=1e-6)
    assert header.get_xyzt_units()[0] == "mm"
