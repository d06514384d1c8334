from __future__ import annotations

import subprocess
import sys
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from app.core.constants import DISPLAY_NAMES, MAX_EXTENT, MIN_EXTENT, MODALITIES, REFERENCE_OF, subset_key


def test_the_order_is_the_challenges():
    assert list(MODALITIES) == sorted(MODALITIES)
    assert set(DISPLAY_NAMES) == set(REFERENCE_OF) == set(MODALITIES)
    assert MIN_EXTENT < MAX_EXTENT


def test_the_reference_has_the_same_weighting():
    for target, reference in REFERENCE_OF.items():
        assert reference != target
        assert reference[:2] == target[:2]


@given(st.permutations(MODALITIES[:3]))
def test_a_subset_has_one_name_in_any_order(inputs):
    assert subset_key(inputs, "t2w") == "t1c+t1n+t2f>t2w"


def test_every_subset_and_target_has_a_name_of_its_own():
    keys = [
        subset_key(inputs, target)
        for target in MODALITIES
        for count in (1, 2, 3)
        for inputs in combinations([m for m in MODALITIES if m != target], count)
    ]
    assert len(set(keys)) == len(keys) == 28


def test_importing_them_loads_no_other_package():
    code = "import sys, app.core.constants; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
