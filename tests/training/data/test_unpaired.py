from __future__ import annotations

import gzip
import shutil
import zlib

import pytest

from app.core.errors import UsageError
from app.data.phantom import make_phantom, write_phantom
from app.preprocessing.normalization import BACKGROUND
from app.training.data.core_slices import CoreSliceData
from app.training.data.unpaired import PairedSource, check_unpaired

DATA = CoreSliceData(views=("axial",), axial=(48, 48), min_brain_pixels=200, tumour_share=1.0)


def _write(folder, *names, lacks=()):
    for name in names:
        write_phantom(make_phantom((24, 24, 20), zlib.crc32(name.encode())), folder, name, leave_out=lacks)
    return folder


@pytest.fixture
def paired(tmp_path):
    return _write(tmp_path / "paired", "BraTS-GLI-00001-000", "BraTS-GLI-00002-000")


class TestCheck:
    def test_nothing_is_asked_of_a_run_without(self, tmp_path):
        check_unpaired(None, tmp_path / "nowhere", None, None)

    def test_patients_of_their_own_are_fine(self, tmp_path, paired, caplog):
        unpaired = _write(tmp_path / "u", "BraTS-GLI-00003-000", lacks=("t1c",))
        assert not check_unpaired(unpaired, paired, None, "t1c")
        assert not caplog.records

    def test_a_task_that_learns_from_complete_exams_alone(self, tmp_path, paired):
        with pytest.raises(UsageError, match=r"--unpaired is for recipes .*data.withheld=t1c"):
            check_unpaired(_write(tmp_path / "u", "x", lacks=("t1c",)), paired, None, None)

    def test_the_folder_is_there(self, tmp_path, paired):
        with pytest.raises(UsageError, match=r"--unpaired .*nowhere does not exist; .*lack t1c"):
            check_unpaired(tmp_path / "nowhere", paired, None, "t1c")

    @pytest.mark.parametrize("exam", ["BraTS-GLI-00002-000", "BraTS-GLI-00002-001"])
    def test_a_patient_of_the_complete_exams_is_left_out_by_name(self, tmp_path, paired, exam, caplog):
        unpaired = _write(tmp_path / "u", exam, "BraTS-GLI-00003-000", lacks=("t1c",))
        assert check_unpaired(unpaired, paired, None, "t1c") == {exam}
        assert f"{exam} of --unpaired is left out: its patient is in {paired} as well." in caplog.messages

    @pytest.mark.parametrize("compressed", [True, False])
    def test_a_patient_is_known_by_content_too(self, tmp_path, paired, compressed, caplog):
        unpaired = _write(tmp_path / "u", "BraTS-GLI-00003-000", lacks=("t1c",))
        for sequence in ("t1n", "t2w", "t2f"):
            source = paired / "BraTS-GLI-00002-000" / f"BraTS-GLI-00002-000-{sequence}.nii.gz"
            copy = unpaired / "Another-Name-1" / f"Another-Name-1-{sequence}.nii{'.gz' if compressed else ''}"
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(source.read_bytes() if compressed else gzip.decompress(source.read_bytes()))
        assert check_unpaired(unpaired, paired, None, "t1c") == {"Another-Name-1"}
        assert "Another-Name-1 of --unpaired is left out" in caplog.text

    def test_who_validates_is_left_out(self, tmp_path, paired):
        unseen = _write(tmp_path / "v", "BraTS-GLI-00004-000")
        unpaired = _write(tmp_path / "u", "BraTS-GLI-00004-001", "BraTS-GLI-00003-000", lacks=("t1c",))
        assert check_unpaired(unpaired, paired, unseen, "t1c") == {"BraTS-GLI-00004-001"}

    def test_nobody_is_left_where_the_same_folder_is_given_twice(self, paired):
        with pytest.raises(UsageError, match=r"every patient of --unpaired .* as well; give exams of others"):
            check_unpaired(paired, paired, None, "t1c")

    def test_it_is_said_where_all_have_the_sequence(self, tmp_path, paired, caplog):
        assert not check_unpaired(_write(tmp_path / "u", "BraTS-GLI-00003-000"), paired, None, "t1c")
        assert "have t1c; it is not looked at. Complete exams teach more in --data." in caplog.text

    def test_exams_that_nobody_uses_are_nobodys(self, tmp_path, paired):
        # The one lacks a source, the other is not complete: neither is learnt from.
        unpaired = _write(tmp_path / "u", "BraTS-GLI-00002-001", lacks=("t1c", "t2w"))
        _write(paired, "BraTS-GLI-00005-000", lacks=("t1n",))
        _write(unpaired, "BraTS-GLI-00005-001", lacks=("t1c",))
        check_unpaired(unpaired, paired, None, "t1c")


class TestSource:
    def _source(self, paired, unpaired, size=4):
        return PairedSource(paired, unpaired, DATA, size)

    def test_half_of_a_batch_is_paired(self, paired_subjects, unpaired_subjects):
        source = self._source(paired_subjects, unpaired_subjects, 6)
        paired, unpaired = source.both(0)
        assert len(paired.batch) == len(unpaired.batch) == 3
        assert len(source.alone(0).batch) == 6
        assert (unpaired.batch.images[:, 0] == BACKGROUND).all()
        assert (unpaired.batch.images[:, 1:] > BACKGROUND).any()
        assert (paired.batch.images[:, 0] > BACKGROUND).any()

    @pytest.mark.parametrize(("share", "lacking"), [(0.5, 2), (0.25, 1), (0.01, 1), (0.99, 3)])
    def test_the_share_of_a_batch_has_both_kinds(self, paired_subjects, unpaired_subjects, share, lacking):
        source = PairedSource(paired_subjects, unpaired_subjects, DATA, 4, share=share)
        assert [len(one.batch) for one in source.both(0)] == [4 - lacking, lacking]

    def test_the_step_decides(self, paired_subjects, unpaired_subjects):
        one, two = (self._source(paired_subjects, unpaired_subjects).both(5) for _ in range(2))
        for a, b in zip(one, two, strict=True):
            assert a.batch.images.equal(b.batch.images)

    def test_both_halves_are_drawn_by_themselves(self, paired_subjects):
        paired, unpaired = self._source(paired_subjects, paired_subjects).both(0)
        assert not paired.batch.images.equal(unpaired.batch.images)


def test_a_complete_exams_target_is_not_looked_at(unpaired_subjects, unpaired_data, tmp_path):
    from app.training.data.cache import build_cache
    from tests.training.conftest import RANGE

    folder = shutil.copytree(unpaired_data, tmp_path / "u")
    (folder / "u8" / "u8-t1c.nii.gz").write_bytes(b"no image")
    subjects = build_cache(folder, tmp_path / "cache", RANGE, "t1c")
    assert [s.name for s in subjects] == [s.name for s in unpaired_subjects] == ["u5", "u6", "u8"]
    for one, two in zip(subjects, unpaired_subjects, strict=True):
        assert set(one.intensities) == {"t1n", "t2w", "t2f"}
        assert (one.normalized == two.normalized).all()
        assert (one.normalized[0] == BACKGROUND).all()
