from __future__ import annotations

import pytest

from app.core.errors import CaseError, UsageError
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


class TestNifti:
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
