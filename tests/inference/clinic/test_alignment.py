from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.core.errors import CaseError
from app.inference.clinic import alignment
from app.inference.clinic.alignment import align, check_alignment
from app.inference.clinic.scans import choose_anchor, read_sequence, scan_of
from tests.inference.clinic.helpers import STILL, write_heads

PATHS = (Path("t2w.nii.gz"), Path("t1n.nii.gz"))


def scan_of_file(path):
    return scan_of(read_sequence(path))


def test_a_good_alignment_passes():
    check_alignment(STILL, *PATHS)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"mirrored": -0.9}, "right and left exchanged"),
        ({"after": -0.4, "before": -0.35, "mirrored": -0.3}, "show one patient"),
        ({"before": -0.9}, "could not be aligned"),
        ({"spread": 7.0}, "align in two ways, 7 mm apart"),
    ],
)
def test_what_cannot_be_trusted_is_refused(changes, message):
    with pytest.raises(CaseError, match=message):
        check_alignment(replace(STILL, **changes), *PATHS)


def test_headers_that_were_better_are_kept_on_any_grid(tmp_path, monkeypatch):
    files = write_heads(tmp_path / "h")
    scans = {m: scan_of_file(files[m]) for m in ("t1n", "t1c")}
    assert scans["t1n"].image.GetSize() != scans["t1c"].image.GetSize()
    (moving,) = {"t1n", "t1c"} - {choose_anchor(scans)}
    for after, kept in ((-0.79, {moving}), (-0.801, set())):
        monkeypatch.setattr(alignment, "register", lambda fixed, other, after=after: replace(STILL, after=after))
        assert align(scans).kept == kept


@pytest.mark.parametrize("after,kept", [(-0.801, True), (-0.85, False)])
def test_a_common_grid_is_left_where_nothing_is_gained(tmp_path, monkeypatch, after, kept):
    files = write_heads(tmp_path / "h", spacing=4)
    scans = {m: scan_of_file(files[m]) for m in ("t1n", "t1c")}
    scans["t1c"] = scan_of_file(files["t1n"])
    moved = replace(STILL, after=after)
    moved.transform.SetTranslation([5.0, 0.0, 0.0])
    monkeypatch.setattr(alignment, "register", lambda fixed, moving: moved)
    exam = align(scans)
    moved.transform.SetTranslation([0.0, 0.0, 0.0])
    assert exam.anchor == "t1n"
    assert exam.kept == ({"t1c"} if kept else set())
    shapes = {v.shape for v in exam.volumes.values()}
    assert len(shapes) == 1
    if kept:
        np.testing.assert_array_equal(exam.volumes["t1c"], exam.volumes["t1n"])
    else:
        assert not np.array_equal(exam.volumes["t1c"], exam.volumes["t1n"])
