from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app.core.config import NamingOptions
from app.core.constants import MODALITIES
from app.core.errors import CaseError, UsageError
from app.data.cases import plan
from app.data.discovery import scan


class TestLayouts:
    def test_brasyn(self, tmp_path, write_subject):
        write_subject(tmp_path / "BraTS-GLI-00001-000", lacks=("t1c",))
        (case,) = scan(tmp_path).cases
        assert case.subject == "BraTS-GLI-00001-000"
        assert plan(case).targets == ("t1c",)
        assert plan(case).reference_of("t1c") == "t1n"

    def test_one_flat_folder(self, tmp_path, write_subject):
        for subject in ("a", "b"):
            write_subject(tmp_path, {m: f"{subject}_{m}.nii" for m in MODALITIES}, lacks=("t2w",))
        assert [c.subject for c in scan(tmp_path).cases] == ["a", "b"]

    def test_bids(self, tmp_path, write_subject):
        names = {"t1c": "ce-gd_T1w", "t1n": "T1w", "t2f": "FLAIR", "t2w": "T2w"}
        for session in ("1", "2"):
            stem = f"sub-7_ses-{session}"
            folder = tmp_path / "sub-7" / f"ses-{session}" / "anat"
            write_subject(folder, {m: f"{stem}_{n}.nii.gz" for m, n in names.items()}, lacks=("t2w",))
        (tmp_path / "participants.tsv").write_text("participant_id\n")
        found = scan(tmp_path)
        assert [c.subject for c in found.cases] == ["sub-7_ses-1", "sub-7_ses-2"]
        assert [plan(c).targets for c in found.cases] == [("t2w",)] * 2
        assert not found.notes

    def test_links_are_followed_and_loops_end(self, tmp_path, write_subject):
        write_subject(tmp_path / "elsewhere" / "s1")
        root = tmp_path / "in"
        root.mkdir()
        (root / "s1").symlink_to(tmp_path / "elsewhere" / "s1")
        (root / "again").symlink_to(root)
        assert [c.subject for c in scan(root).cases] == ["s1"]

    def test_a_link_to_itself_is_one_subjects_trouble(self, tmp_path, write_subject):
        write_subject(tmp_path / "a")
        write_subject(tmp_path / "b")
        (tmp_path / "b" / "b-t1n.nii.gz").unlink()
        (tmp_path / "b" / "b-t1n.nii.gz").symlink_to("b-t1n.nii.gz")
        (tmp_path / "self").symlink_to("self")
        good, bad = scan(tmp_path).cases
        assert plan(good, "skip").targets == ("t2f",)
        with pytest.raises(CaseError, match=r"b-t1n\.nii\.gz"):
            plan(bad, "skip")

    def test_a_link_to_a_folder_above_is_not_followed(self, tmp_path, write_subject):
        write_subject(tmp_path / "in" / "a")
        write_subject(tmp_path / "others" / "b")
        (tmp_path / "in" / "up").symlink_to(tmp_path)
        found = scan(tmp_path / "in")
        assert [c.subject for c in found.cases] == ["a"]
        assert any("leads out of the input" in n for n in found.notes)

    def test_derivatives_are_not_raw_images(self, tmp_path, write_subject):
        names = {"t1c": "sub-1_ce-gd_T1w.nii.gz", "t1n": "sub-1_T1w.nii.gz", "t2f": "sub-1_FLAIR.nii.gz",
                 "t2w": "sub-1_T2w.nii.gz"}  # fmt: skip
        write_subject(tmp_path / "sub-1" / "anat", names)
        write_subject(tmp_path / "derivatives" / "prep" / "sub-1" / "anat", names)
        (case,) = scan(tmp_path).cases
        assert plan(case, "skip").targets == ("t2f",)

    def test_a_copy_in_a_subfolder_does_not_rename_a_subject(self, tmp_path, write_subject):
        names = {m: f"P1-{m}.nii.gz" for m in MODALITIES}
        write_subject(tmp_path, names)
        write_subject(tmp_path / "old", names)
        for case in scan(tmp_path).cases:
            assert case.subject == "P1"
            with pytest.raises(CaseError, match="two subjects are named P1"):
                plan(case)

    def test_one_name_in_two_folders_gets_the_folders_names(self, tmp_path, write_subject):
        for place in ("north", "south"):
            write_subject(tmp_path / place, {m: f"scan-{m}.nii.gz" for m in MODALITIES})
        assert [c.subject for c in scan(tmp_path).cases] == ["north", "south"]

    def test_two_patients_of_one_name_are_never_mixed_up(self, tmp_path, write_subject):
        for site in ("north", "south"):
            write_subject(tmp_path / site / "001")
        for case in scan(tmp_path).cases:
            with pytest.raises(CaseError, match=r"two subjects are named 001 .*north.* and .*south"):
                plan(case)

    def test_one_patient_with_another_sequence_dropped_in_each_folder(self, tmp_path, write_subject):
        for target in MODALITIES:
            write_subject(tmp_path / target / "001", lacks=(target,))
        assert [plan(c).targets for c in scan(tmp_path).cases] == [(m,) for m in MODALITIES]

    def test_apple_doubles_and_segmentations_are_no_subjects(self, tmp_path, subject):
        folder = subject["t1n"].parent
        (folder / "._sub01-t2f.nii.gz").write_bytes(b"x")
        shutil.copy(subject["t1n"], folder / "sub01-seg.nii.gz")
        found = scan(folder.parent)
        assert plan(found.cases[0]).targets == ("t2f",)
        assert not found.notes

    def test_output_inside_the_input_is_left_out(self, tmp_path, subject):
        root = subject["t1n"].parent.parent
        (root / "out").mkdir()
        shutil.copy(subject["t1n"], root / "out" / "sub01-t2f.nii.gz")
        assert [c.subject for c in scan(root, exclude=[root / "out"]).cases] == ["sub01"]


class TestTrouble:
    def test_input_that_is_not_there(self, tmp_path):
        with pytest.raises(UsageError, match="does not exist"):
            scan(tmp_path / "nowhere")

    def test_stray_file_is_named(self, tmp_path, subject):
        (subject["t1n"].parent / "report.pdf").write_bytes(b"x")
        (note,) = scan(tmp_path / "in").notes
        assert "report.pdf" in note

    def test_empty_folder_is_named(self, tmp_path, subject):
        (tmp_path / "in" / "sub02").mkdir()
        case = scan(tmp_path / "in").cases[1]
        with pytest.raises(CaseError, match="sub02 is an empty folder"):
            plan(case)

    def test_an_empty_folder_that_is_no_subjects_is_passed_over(self, tmp_path, subject):
        for name in ("stimuli", "sub01/func"):
            (tmp_path / "in" / name).mkdir()
        found = scan(tmp_path / "in")
        assert [c.subject for c in found.cases] == ["sub01"]
        assert "stimuli" in found.notes[0]
        assert "func" in found.notes[0]

    @pytest.mark.parametrize("name", ["lost+found", "@eaDir", "#recycle", "__MACOSX", "$RECYCLE.BIN"])
    def test_folders_of_a_system_are_not_entered(self, tmp_path, subject, name):
        shutil.copytree(tmp_path / "in" / "sub01", tmp_path / "in" / name / "sub01")
        found = scan(tmp_path / "in")
        assert [c.subject for c in found.cases] == ["sub01"]
        assert not found.notes

    def test_thousands_of_stray_files_are_one_sentence(self, tmp_path, subject):
        for number in range(2000):
            (tmp_path / "in" / f"f{number:04d}.pdf").touch()
            (tmp_path / "in" / f"d{number:04d}").mkdir()
        found = scan(tmp_path / "in")
        assert [c.subject for c in found.cases] == ["sub01"]
        assert len(found.notes) == 2
        assert "and 1997 more" in found.notes[0]

    def test_a_folder_of_dicom_is_one_sentence(self, tmp_path):
        folder = tmp_path / "in" / "PAT1" / "T1"
        folder.mkdir(parents=True)
        for number in range(20):
            (folder / f"IM{number:04d}").write_bytes(bytes(128) + b"DICM" + bytes(100))
        (note,) = scan(tmp_path / "in").notes
        assert "20 files that look like DICOM" in note
        assert "dcm2niix" in note

    @pytest.mark.parametrize("name", ["sub01-t2f.nii.bz2", "sub01_FLAIR.mnc", "sub01_flair.zip", "FLAIR/IM0001"])
    def test_a_sequence_in_a_format_that_is_not_read_is_not_made_anew(self, tmp_path, subject, name):
        path = tmp_path / "in" / "sub01" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(128) + b"DICM")
        (case,) = scan(tmp_path / "in").cases
        with pytest.raises(CaseError, match=r"seems to be the t2f of sub01.*convert"):
            plan(case, "skip")
        assert plan(case, "fallback").targets == ("t2f",)

    @pytest.mark.parametrize("name", ["sub01-t1n.nii.bz2", "sub01.zip", "DICOM/IM0001"])
    def test_what_is_not_read_and_is_not_lacking_is_no_doubt(self, tmp_path, subject, name):
        path = tmp_path / "in" / "sub01" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(128) + b"DICM")
        (case,) = scan(tmp_path / "in").cases
        assert plan(case, "skip").targets == ("t2f",)

    def test_four_volumes_in_one_file(self, tmp_path):
        image = nib.Nifti1Image(np.zeros((40, 40, 40, 4), np.uint8), np.eye(4))
        nib.save(image, tmp_path / "BRATS_001.nii.gz")
        assert any("holds 4 volumes" in note for note in scan(tmp_path).notes)


class TestOneName:
    def test_two_data_sets_with_one_subjects_name(self, tmp_path, write_subject):
        names = {"t1c": "sub-01_ce-gd_T1w", "t1n": "sub-01_T1w", "t2f": "sub-01_FLAIR", "t2w": "sub-01_T2w"}
        names = {m: f"{n}.nii.gz" for m, n in names.items()}
        write_subject(tmp_path / "A" / "sub-01" / "anat", names, lacks=("t2f", "t2w"))
        write_subject(tmp_path / "B" / "sub-01" / "anat", names, lacks=("t1c", "t1n", "t2f"))
        for case in scan(tmp_path).cases:
            for policy in ("fallback", "skip"):
                with pytest.raises(CaseError, match=r"two subjects are named sub-01 .*A.*B.*--name-from-folders"):
                    plan(case, policy, complete_all=True)
        apart = scan(tmp_path, naming=NamingOptions(name_from_folders=True)).cases
        assert [(c.subject, c.usable) for c in apart] == [("A_sub-01", ("t1c", "t1n")), ("B_sub-01", ("t2w",))]

    def test_one_name_whose_outputs_differ_is_refused_too(self, tmp_path, write_subject, phantom):
        write_subject(tmp_path / "A" / "001", lacks=("t2f",))
        files = write_subject(tmp_path / "B" / "001", lacks=("t1c",), dtype=np.float32)
        assert set(files) == {"t1n", "t2f", "t2w"}
        for case in scan(tmp_path).cases:
            with pytest.raises(CaseError, match="two subjects are named 001"):
                plan(case)

    def test_files_of_one_size_are_no_evidence_of_one_person(self, tmp_path, write_subject):
        names = {m: f"001-{m}.nii" for m in MODALITIES}
        write_subject(tmp_path / "A" / "001", names, lacks=("t2f",))
        for path in write_subject(tmp_path / "B" / "001", names, lacks=("t1c",)).values():
            image = nib.load(path)
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), image.affine), path)
        for case in scan(tmp_path).cases:
            with pytest.raises(CaseError, match="two subjects are named 001"):
                plan(case)

    def test_names_that_differ_in_case_only(self, tmp_path, write_subject):
        for name in ("a", "A"):
            write_subject(tmp_path / name, {m: f"{name}01-{m}.nii.gz" for m in MODALITIES})
        for case in scan(tmp_path).cases:
            with pytest.raises(CaseError, match="two subjects are named"):
                plan(case)


class TestOwnOutputs:
    def test_what_tetrad_made_is_no_scan(self, tmp_path, write_subject):
        files = write_subject(tmp_path / "in" / "s", lacks=())
        image = nib.load(files["t2f"])
        image.header["descrip"] = b"synthetic t2f from 3, tetrad 0.1.0, unet 00000000 mean"
        nib.save(image, files["t2f"])
        found = scan(tmp_path / "in")
        assert plan(found.cases[0], "skip").targets == ("t2f",)
        assert any("made by Tetrad" in note for note in found.notes)

    def test_in_a_folder_of_its_own_it_is_no_subject(self, tmp_path, write_subject):
        files = write_subject(tmp_path / "in" / "s")
        image = nib.load(files["t1n"])
        image.header["descrip"] = b"synthetic t2f from 3, tetrad 0.1.0, unet 00000000 mean"
        (tmp_path / "in" / "done").mkdir()
        nib.save(image, tmp_path / "in" / "done" / "s-t2f.nii.gz")
        (case,) = scan(tmp_path / "in").cases
        assert plan(case, "skip").targets == ("t2f",)


def test_a_run_can_be_chosen(tmp_path, write_subject):
    names = {m: f"P_{m}_run-2.nii.gz" for m in MODALITIES}
    write_subject(tmp_path / "P", names)
    write_subject(tmp_path / "P", {**names, "t1n": "P_t1n_run-10.nii.gz"}, lacks=("t1c", "t2f", "t2w"))
    for choice, run in (("first", "run-2"), ("last", "run-10")):
        (case,) = scan(tmp_path, naming=NamingOptions(run=choice)).cases
        assert run in case.files["t1n"].name
        assert plan(case, "skip").targets == ("t2f",)


class TestFiles:
    def test_broken_link(self, tmp_path, subject):
        subject["t2w"].unlink()
        subject["t2w"].symlink_to("gone.nii.gz")
        (case,) = scan(tmp_path / "in").cases
        with pytest.raises(CaseError, match="broken link"):
            plan(case, "skip")

    def test_unreadable_folder(self, tmp_path, subject, monkeypatch):
        import os

        real = os.scandir

        def refuse(path):
            if Path(path).name == "sub01":
                raise PermissionError(13, "Permission denied")
            return real(path)

        monkeypatch.setattr("os.scandir", refuse)
        (case,) = scan(tmp_path / "in").cases
        with pytest.raises(CaseError, match="may not be read"):
            plan(case)
