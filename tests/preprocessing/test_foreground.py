from __future__ import annotations

import numpy as np
import pytest

from app.core.constants import MODALITIES
from app.preprocessing.foreground import bounding_box, vote_foreground


@pytest.mark.parametrize(
    "count,dark,expected",
    [(3, 1, True), (3, 2, False), (3, 3, False), (2, 1, True), (2, 2, False), (1, 0, True), (1, 1, False)],
)
def test_background_is_where_most_inputs_are(count, dark, expected):
    volumes = {
        m: np.full((1, 1, 1), 0.0 if i < dark else 5.0, dtype=np.float32) for i, m in enumerate(MODALITIES[:count])
    }
    assert bool(vote_foreground(volumes)[0, 0, 0]) is expected


def test_the_box_is_the_smallest_around_all_true_voxels():
    found = np.zeros((6, 7, 8), bool)
    found[1, 2, 7] = found[4, 2, 3] = True
    assert bounding_box(found) == (slice(1, 5), slice(2, 3), slice(3, 8))
