from __future__ import annotations

import pytest

from app.core.errors import CaseError, UsageError
from app.dicom.selection import SeriesRules
from app.inference.clinic.study import open_study
from tests.dicom.helpers import T1, T2, head, write_series
from tests.inference.clinic.helpers import write_heads


class TestDicom:
    @pytest.fixture
    def folder(self, tmp_path):
        for number, header in ((1, T1), (2, T2)):
            write_series(tmp_path / "exam" / str(number), head(), number=number, **header)
        return tmp_path / "exam"

    def test_series_are_told_and_read_later(self, folder):
        told = []
        study = open_study(folder, say=told.append)
        assert study.name == "exam"
        assert len(told) == 2
        assert study.lines[0].startswith("t1n is series 1")
        assert study.files == {"t1n": folder / "1", "t2w": folder / "2"}
        assert study.readers["t2w"]().data.shape == (48, 40, 8)
        assert set(study.series) == {"t1n", "t2w"}

    def test_another_patients_series_beside_it(self, folder):
        write_series(folder / "3", head(), number=3, patient="P2", study="1.2.4", **T1)
        with pytest.raises(UsageError, match="series of 2 patients"):
            open_study(folder)

    def test_one_study_of_several(self, folder):
        write_series(folder / "3", head(), number=3, study="1.2.9", **T1)
        with pytest.raises(UsageError, match=r"holds 2 studies .*--study-uid"):
            open_study(folder)
        assert set(open_study(folder, rules=SeriesRules(study="1.2.9")).series) == {"t1n"}

    def test_images_of_another_kind_beside_it_are_said(self, folder):
        write_heads(folder / "head")
        (note,) = [w for w in open_study(folder).warnings if "passed over" in w]
        assert "3 other images" in note

    def test_the_result_is_no_input(self, folder):
        write_series(folder / "out", head(), number=9, study="1.2.9", **T1)
        assert set(open_study(folder, exclude=[folder / "out"]).series) == {"t1n", "t2w"}


class TestNifti:
    def test_a_study_is_of_dicom(self, tmp_path):
        write_heads(tmp_path / "head")
        with pytest.raises(UsageError, match="leave out --study-uid"):
            open_study(tmp_path / "head", rules=SeriesRules(study="1"))
        with pytest.raises(UsageError, match="leave out --ignore"):
            open_study(tmp_path / "head", rules=SeriesRules(("7",)))

    def test_files_are_taken_by_name(self, tmp_path):
        files = write_heads(tmp_path / "head")
        study = open_study(tmp_path / "head")
        assert study.name == "head"
        assert study.files == files
        assert not study.series

    def test_a_name_that_may_be_what_lacks_is_asked_about(self, tmp_path):
        files = write_heads(tmp_path / "head")
        files["t1n"].rename(tmp_path / "head" / "scan7.nii")
        with pytest.raises(CaseError, match=r"scan7\.nii"):
            open_study(tmp_path / "head")
        named = open_study(tmp_path / "head", {"t1n": str(tmp_path / "head" / "scan7.nii")})
        assert named.files["t1n"].name == "scan7.nii"

    def test_nothing_there(self, tmp_path):
        with pytest.raises(UsageError, match="no sequence that is understood"):
            open_study(tmp_path)
