from __future__ import annotations

from pathlib import Path

from app.data.naming.reading import NamedImage, NameReading


def test_only_an_understood_name_gives_a_sequence():
    path = Path("P1_T1_FLAIR.nii.gz")
    assert NamedImage(path, NameReading("sequence", "", sequence="t2f")).sequence == "t2f"
    assert NamedImage(path, NameReading("unknown", "", sequence="t2f")).sequence is None
