from __future__ import annotations

import gzip
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.constants import MODALITIES
from app.core.errors import CaseError
from app.data.cases import Case, also_in, patient_of, plan, tumour_type
from app.data.discovery import scan


class TestPlan:
    def test_duplicate(self, tmp_path, subject):
        shutil.copy(subject["t1n"], subject["t1n"].with_name("sub01_t1.nii.gz"))
        (case,) = scan(tmp_path / "in").cases
        with pytest.raises(CaseError, match="2 files for t1n"):
            plan(case, "skip")
        todo = plan(case, "fallback")
        assert todo.fallback
        assert "made from what is left (t1c, t2w)" in todo.warnings[-1]
        assert todo.inputs == ("t1c", "t2w")
        assert todo.targets == ("t2f",)

    def test_several_missing(self, tmp_path, write_subject):
        write_subject(tmp_path / "s", lacks=("t1c", "t2f"))
        (case,) = scan(tmp_path).cases
        with pytest.raises(CaseError, match=r"lacks t1c, t2f; pass --complete-all"):
            plan(case, "skip")
        assert plan(case, "skip", complete_all=True).targets == ("t1c", "t2f")
        assert plan(case, "fallback").targets == ("t1c", "t2f")

    def test_several_missing_under_other_names_than_the_challenges(self, tmp_path, write_subject):
        write_subject(tmp_path / "s", {m: f"s_{m}.nii.gz" for m in MODALITIES}, lacks=("t1c", "t2f"))
        (case,) = scan(tmp_path).cases
        with pytest.raises(CaseError, match=r"lacks t1c, t2f; pass --complete-all"):
            plan(case, "fallback")
        assert plan(case, "fallback", complete_all=True).targets == ("t1c", "t2f")

    def test_two_runs_lack_nothing(self, tmp_path, write_subject):
        files = write_subject(tmp_path / "s", lacks=())
        shutil.copy(files["t1n"], files["t1n"].with_name("s_t1_run-2.nii.gz"))
        (case,) = scan(tmp_path).cases
        for policy in ("fallback", "skip", "stop"):
            with pytest.raises(CaseError, match=r"2 files for t1n.*keep one, or give --run first"):
                plan(case, policy)
        assert (
            "t1n"
            not in plan(replace(case, files={"t1n": files["t1n"], "t2w": files["t2w"]}), complete_all=True).targets
        )

    def test_an_image_that_is_not_understood(self, tmp_path, write_subject):
        files = write_subject(tmp_path / "s")
        shutil.copy(files["t1n"], files["t1n"].with_name("s_kernel.nii.gz"))
        (case,) = scan(tmp_path).cases
        for policy in ("skip", "stop"):
            with pytest.raises(CaseError, match=r"s_kernel\.nii\.gz may be a sequence of s.*--name t1c="):
                plan(case, policy)
        todo = plan(case, "fallback")
        assert todo.targets == ("t2f",)
        assert any("s_kernel.nii.gz" in w for w in todo.warnings)

    def test_beside_a_complete_exam_an_image_that_is_not_understood_matters_not(self, tmp_path, write_subject):
        files = write_subject(tmp_path / "s", lacks=())
        shutil.copy(files["t1n"], files["t1n"].with_name("s_kernel.nii.gz"))
        assert not plan(scan(tmp_path).cases[0], "skip").targets

    def test_three_missing(self, tmp_path, write_subject):
        write_subject(tmp_path / "s", lacks=("t1c", "t1n", "t2f"))
        todo = plan(scan(tmp_path).cases[0], "stop", complete_all=True)
        assert todo.targets == ("t1c", "t1n", "t2f")
        assert [todo.reference_of(t) for t in todo.targets] == ["t2w"] * 3

    def test_empty_sequence_counts_as_missing(self, tmp_path, write_subject):
        files = write_subject(tmp_path / "s", lacks=())
        nib.save(nib.Nifti1Image(np.zeros((48, 56, 40), np.int16), nib.load(files["t1c"]).affine), files["t1c"])
        todo = plan(scan(tmp_path).cases[0], "skip")
        assert todo.targets == ("t1c",)
        assert "counts as missing" in todo.warnings[0]
        assert not todo.fallback

    def test_empty_sequence_beside_a_missing_one_is_not_made(self, tmp_path, write_subject):
        files = write_subject(tmp_path / "s", lacks=("t2f",))
        nib.save(nib.Nifti1Image(np.zeros((48, 56, 40), np.int16), nib.load(files["t1c"]).affine), files["t1c"])
        (case,) = scan(tmp_path).cases
        assert plan(case, "skip").targets == ("t2f",)
        assert plan(case, "skip", complete_all=True).targets == ("t1c", "t2f")

    def test_different_grids_are_refused_whatever_the_policy(self, tmp_path, subject):
        image = nib.load(subject["t2w"])
        affine = image.affine.copy()
        affine[0, 3] += 3
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), subject["t2w"])
        (case,) = scan(tmp_path / "in").cases
        for policy in ("fallback", "skip", "stop"):
            with pytest.raises(CaseError, match=r"different grids.*register"):
                plan(case, policy)

    def test_no_sequence_can_be_used(self, tmp_path):
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "s-t1n.nii.gz").write_bytes(gzip.compress(b"no image"))
        with pytest.raises(CaseError, match="no sequence can be used"):
            plan(scan(tmp_path).cases[0])


class TestNames:
    @pytest.mark.parametrize(
        "subject,kind,patient",
        [
            ("BraTS-GLI-00001-000", "GLI", "BraTS-GLI-00001"),
            ("BraTS-MET-00012-103", "MET", "BraTS-MET-00012"),
            ("BraTS2021_00000", "unknown", "BraTS2021_00000"),
            ("Brats18_2013_3_1", "unknown", "Brats18_2013_3_1"),
            ("sub-01_ses-02", "unknown", "sub-01"),
            ("sub-01", "unknown", "sub-01"),
            ("Patient-001_week-000-1", "unknown", "Patient-001"),
            ("UCSF-PDGM-0433_FU001d", "unknown", "UCSF-PDGM-0433"),
            ("UPENN-GBM-00001_11", "unknown", "UPENN-GBM-00001"),
            ("UCSD-PTGBM-0002_01", "unknown", "UCSD-PTGBM-0002"),
            ("100101A", "unknown", "100101"),
            ("TCGA-02-0006_1996.08.23", "unknown", "TCGA-02-0006"),
        ],
    )
    def test_type_and_patient_come_from_names_of_collections(self, subject, kind, patient):
        assert tumour_type(subject) == kind
        assert patient_of(subject) == patient

    def test_another_exam_of_a_patient_is_known(self):
        subjects = ["BraTS-GLI-00001-000", "BraTS-GLI-00001-001", "BraTS-GLI-00002-000", "x"]
        assert also_in(subjects, ["BraTS-GLI-00001-007", "y"]) == subjects[:2]
        assert also_in(subjects, []) == []


class TestLaws:
    @given(st.sets(st.sampled_from(MODALITIES), min_size=1), st.booleans())
    def test_inputs_and_targets_share_nothing_and_references_are_inputs(self, present, complete_all):
        case = Case("s", {m: Path(m) for m in present}, {m: SimpleNamespace(same_as=lambda _: True) for m in present})
        case = replace(case, challenge_names=True)
        todo = plan(case, "fallback", complete_all)
        assert todo.inputs == case.usable == tuple(m for m in MODALITIES if m in present)
        assert todo.targets == case.absent
        assert not todo.fallback
        assert all(todo.reference_of(t) in todo.inputs for t in todo.targets)

    @given(st.sampled_from(MODALITIES))
    def test_a_fault_or_emptiness_leaves_the_case_as_it_was(self, modality):
        case = Case("s", {m: Path(m) for m in MODALITIES})
        for other in (case.with_fault(modality, "broken"), case.with_empty(modality, "all zero")):
            assert set(case.usable) - set(other.usable) == {modality}
            assert other.absent == ()
        assert case.usable == MODALITIES
