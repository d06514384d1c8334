from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(st.lists(st.lists(st.integers(0, 2), min_size=8, max_size=8), min_size=1, max_size=4), st.randoms())
def test_the_vote_does_not_depend_on_the_order(values, random):
    volumes = [np.array(v, np.float32).reshape(2, 2, 2) for v in values]
    brain = vote_foreground(dict(zip(MODALITIES, volumes, strict=False)))
    random.shuffle(volumes)
    np.testing.assert_array_equal(vote_foreground(dict(zip(MODALITIES, volumes, strict=False))), brain)


@given(st.sets(st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 6)), min_size=1))
def test_the_box_holds_every_voxel_and_touches_one_at_each_face(voxels):
    brain = np.zeros((5, 6, 7), bool)
    brain[tuple(np.array(sorted(voxels)).T)] = True
    box = bounding_box(brain)
    inside = brain[box]
    assert inside.sum() == len(voxels)
    for axis in range(3):
        assert inside.take(0, axis).any()
        assert inside.take(-1, axis).any()


def test_an_empty_foreground_has_no_box():
    with pytest.raises(ValueError, match="empty"):
        bounding_box(np.zeros((3, 3, 3), bool))
