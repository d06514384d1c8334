from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import nibabel as nib
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
        ({"mirrored": -0.9}, "one of them is mirrored"),
        ({"mirrored": -0.79}, "as well with right and left exchanged .*show one patient"),
        ({"mirrored": -0.81}, "as well with right and left exchanged .*show one patient"),
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


@pytest.mark.data
class TestGlioblastomaAsScanned:
    """A series that is another's, or mirrored, must never be taken for the patient's own."""

    @pytest.fixture
    def exam(self, data_dir):
        folder = data_dir / "clinical" / "tcga-02-0054"
        if not folder.is_dir():
            pytest.skip(f"the exam is not at {folder}")
        return folder

    def _align(self, exam, t2w):
        return align({"t1n": scan_of_file(exam / "tcga-02-0054_t1.nii.gz"), "t2w": scan_of_file(t2w)})

    def test_a_mirrored_t2_is_refused(self, exam, tmp_path):
        image = nib.load(exam / "tcga-02-0054_t2.nii.gz")
        axis = next(a for a, code in enumerate(nib.aff2axcodes(image.affine)) if code in "LR")
        mirrored = np.flip(np.asarray(image.dataobj), axis)
        nib.save(nib.Nifti1Image(mirrored, image.affine, image.header), tmp_path / "t2.nii.gz")
        with pytest.raises(CaseError, match="right and left exchanged"):
            self._align(exam, tmp_path / "t2.nii.gz")

    def test_another_patients_t2_is_refused(self, exam):
        with pytest.raises(CaseError, match=r"too little in common|align in two ways"):
            self._align(exam, exam.parent / "ms01-raw" / "ms01-raw-t2w.nii.gz")
