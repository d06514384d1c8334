from __future__ import annotations

import subprocess
import sys

from app.core.constants import DISPLAY_NAMES, MAX_EXTENT, MIN_EXTENT, MODALITIES, REFERENCE_OF


def test_the_order_is_the_challenges():
    assert list(MODALITIES) == sorted(MODALITIES)
    assert set(DISPLAY_NAMES) == set(REFERENCE_OF) == set(MODALITIES)
    assert MIN_EXTENT < MAX_EXTENT


def test_the_reference_has_the_same_weighting():
    for target, reference in REFERENCE_OF.items():
        assert reference != target
        assert reference[:2] == target[:2]


def test_importing_them_loads_no_other_package():
    code = "import sys, app.core.constants; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
