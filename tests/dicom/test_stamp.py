from __future__ import annotations

import numpy as np
import pytest

from app.dicom.stamp import stamped


@pytest.mark.parametrize("shape", [(256, 256, 3), (320, 180, 2), (24, 20, 1), (5, 4, 1)])
def test_the_word_stands_in_the_lower_left_of_each_slice(shape):
    before = np.ones(shape, np.float32)
    marked = stamped(before, 50.0) == 50
    columns, rows = shape[:2]
    assert marked.any()
    assert not marked[:, : rows // 2].any() or rows < 30
    assert (marked == marked[..., :1]).all()
    assert (before == 1).all()
    if columns > 100:
        assert not marked[round(0.6 * columns) :].any()


def test_it_reads_from_left_to_right_and_stands_upright():
    marked = stamped(np.zeros((400, 400, 1), np.float32), 1.0)[..., 0]
    inked = np.concatenate([[0], marked.any(axis=1).astype(int), [0]])
    starts, ends = np.flatnonzero(np.diff(inked) == 1), np.flatnonzero(np.diff(inked) == -1)
    assert len(starts) == len("SYNTHETIC")
    assert np.argmin(ends - starts) == "SYNTHETIC".index("I")
    t = marked[starts[3] : ends[3]]
    rows = np.flatnonzero(t.any(axis=0))
    assert t[:, rows[0]].sum() > t[:, rows[-1]].sum()
