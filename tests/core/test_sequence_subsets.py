from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from app.core.constants import MODALITIES
from app.core.sequence_subsets import subset_key, subsets


def test_every_subset_and_target_has_a_name_of_its_own():
    keys = [
        subset_key(inputs, target)
        for target in MODALITIES
        for count in (1, 2, 3)
        for inputs in combinations([m for m in MODALITIES if m != target], count)
    ]
    assert len(set(keys)) == len(keys) == 28


@given(st.permutations(MODALITIES[:3]))
def test_a_subset_has_one_name_in_any_order(inputs):
    assert subset_key(inputs, "t2w") == "t1c+t1n+t2f>t2w"


def test_subsets():
    pairs = list(subsets())
    assert len(pairs) == 28
    assert len({subset_key(i, t) for i, t in pairs}) == 28
