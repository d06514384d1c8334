from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.data.naming.names import is_number, parse_name, read_name


@pytest.mark.parametrize(
    "name,expected",
    [
        ("BraTS-GLI-00001-000-t1c.nii.gz", ("BraTS-GLI-00001-000", "t1c")),
        ("BraTS-GLI-00001-000-t2f.nii", ("BraTS-GLI-00001-000", "t2f")),
        ("BraTS2021_00000_t1.nii.gz", ("BraTS2021_00000", "t1n")),
        ("BraTS2021_00000_t1ce.nii.gz", ("BraTS2021_00000", "t1c")),
        ("BraTS2021_00000_t2.nii.gz", ("BraTS2021_00000", "t2w")),
        ("BraTS2021_00000_flair.NII.GZ", ("BraTS2021_00000", "t2f")),
        ("sub-01_T1w.nii.gz", ("sub-01", "t1n")),
        ("sub-01_ses-02_ce-gadolinium_T1w.nii.gz", ("sub-01_ses-02", "t1c")),
        ("t2w.nii.gz", ("folder", "t2w")),
        ("sub01-seg.nii.gz", None),
        ("scan.nii.gz", None),
        ("sub01-t1c.txt", None),
        ("art2.nii.gz", None),
    ],
)
def test_subject_and_sequence(name, expected):
    assert parse_name(Path("folder") / name) == expected


class TestContrast:
    @pytest.mark.parametrize(
        "stem",
        """T1c T1ce T1Gd T1gad T1post T1_post T1-post T1+C T1C+ T1_C T1w_CE T1wCE T1W_Gd T1_postcontrast
        T1_post_contrast T1_contrast_enhanced CT1 cT1 ceT1 GdT1 CE_T1 Gd-T1 T1_gadovist T1_gadoteridol T1_KM
        t1_mprage_sag_KM P_T1w_3D_TFE_Gd postT1 T1_SE_C AX_T1_POST""".split(),
    )
    def test_with_agent(self, stem):
        assert read_name(stem).sequence == "t1c"

    @pytest.mark.parametrize(
        "stem",
        """T1 T1w T1n T1pre T1_pre T1_precontrast T1_pre_contrast T1_without_contrast T1_no_contrast T1_nonCE T1_native
        T1_nogd t1w_preGd T1W_IR T1_MPRAGE T1_postop T1_post_op T1_after-RT""".split(),
    )
    def test_without_agent(self, stem):
        assert read_name(stem).sequence == "t1n"

    @pytest.mark.parametrize(
        "stem", ["P1_post_T1", "T1_pre_postGd", "P_T1_contr", "P_T1_enhance", "MPRAGE", "T1_FLAIR"]
    )
    def test_doubt_is_no_sequence(self, stem):
        assert read_name(stem).kind == "unknown"

    def test_agent_changes_no_other_sequence(self):
        assert read_name("P_T2_post").sequence == "t2w"
        assert read_name("P_FLAIR_Gd").sequence == "t2f"


class TestFlair:
    @pytest.mark.parametrize(
        "stem",
        "FLAIR flair fla T2_FLAIR T2-FLAIR t2flair t2f 3DFLAIR T2w_FLAIR t2_tirm_tra_dark-fluid FL_to_SRI".split(),
    )
    def test_spellings(self, stem):
        reading = read_name(stem)
        assert (reading.sequence, reading.subject) == ("t2f", "")

    def test_the_t2_before_it_is_no_part_of_the_subject(self):
        assert read_name("P001_T2_FLAIR").subject == "P001"


@pytest.mark.parametrize(
    "stem,sequence",
    [("P_T2_to_T1", "t2w"), ("P_FLAIR_to_T1", "t2f"), ("P_T2toT1", "t2w"), ("FLAIR2T1", "t2f"),
     ("P_T1c_reg_to_T2", "t1c"), ("P_T2_in_MNI", "t2w"), ("P_T1_to_SRI_brain", "t1n")],
)  # fmt: skip
def test_the_image_that_a_scan_was_registered_to_is_not_the_sequence(stem, sequence):
    reading = read_name(stem)
    assert reading.sequence == sequence
    assert reading.subject == ("P" if stem.startswith("P") else "")
    assert "registered" in reading.version


@pytest.mark.parametrize(
    "stem",
    """P_seg P_mask P_T1_mask P_brain_mask P_T1_brain_mask P_T2star P_T2_star P_T1map P_T1_map P_T2Synth P_T1_sub
    P_subtraction P_ADC P_SWI P_DTI_FA P_T1_biasfield P_pve_0 brainTumorMask_SRI P_segm mask_T1""".split(),
)
def test_other_images_are_none_of_the_four(stem):
    assert read_name(stem).kind == "other"


def test_a_sequence_before_the_subjects_own_words_is_a_part_of_its_name():
    reading = read_name("t1c-Brats18_CBICA_ATD_1-t1n")
    assert (reading.subject, reading.sequence) == ("t1c-Brats18_CBICA_ATD_1", "t1n")


def test_versions_are_told():
    assert read_name("P_T1_brain").version == {"brain"}
    assert read_name("P_T1_unstripped").version == {"unstripped"}
    assert read_name("CT1_r2s_bet_reg").version == {"r2s", "bet", "reg"}
    assert read_name("P_T1_bias_field_corrected").version == {"biascorrected"}


def test_runs_are_told():
    assert read_name("P_T1_run-2").run == "2"
    assert read_name("P_T1_run1").run == "1"


def test_a_plain_name_is_sure_and_others_are_not():
    assert read_name("P-t1n").sure
    assert not read_name("P_T1_post").sure


@given(st.text(max_size=60))
def test_any_text_is_read(stem):
    assert read_name(stem).kind in {"sequence", "other", "unknown"}


@given(st.from_regex(r"[A-Za-z]{3}[0-9]{4}", fullmatch=True), st.sampled_from(["t1n", "t1c", "t2w", "t2f"]))
def test_the_challenges_names_are_read_exactly(subject, sequence):
    reading = read_name(f"{subject}-{sequence}")
    assert (reading.subject, reading.sequence, reading.sure) == (subject, sequence, True)


def test_numbers():
    assert is_number("0001")
    assert is_number("20200101_2")
    assert not is_number("postop")
