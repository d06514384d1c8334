from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

import pytest

from app.data.naming.grouping import group_images
from tests.data.naming.layouts import layout


def _nii(*stems):
    return [f"{stem}.nii.gz" for stem in stems]


class TestOneExam:
    def test_one_folder_per_sequence(self):
        found = layout(*_nii("P/T1/P_T1", "P/T1GD/P_T1GD", "P/FLAIR/P_FLAIR"))
        assert list(found.subjects) == ["P"]
        assert set(found.subjects["P"]) == {"t1n", "t1c", "t2f"}

    def test_both_forms_of_a_letter_are_one_name(self):
        composed, decomposed = (unicodedata.normalize(f, "Müller") for f in ("NFC", "NFD"))
        found = layout(f"{composed}-t1n.nii.gz", f"{decomposed}-t2w.nii.gz")
        assert list(found.subjects) == [composed]
        assert list(layout(f"{decomposed}-t1n.nii.gz", f"{decomposed}-t2w.nii.gz").subjects) == [decomposed]

    def test_nameless_files_belong_to_the_one_subject_beside(self):
        found = layout(*_nii("P1/T1", "P1/P1_T2", "P1/P1_FLAIR"))
        assert set(found.subjects["P1"]) == {"t1n", "t2w", "t2f"}

    def test_series_numbers_are_no_subjects(self):
        assert list(layout(*_nii("p/T1_5", "p/T2_6", "p/FLAIR_7")).subjects) == ["p"]

    def test_an_image_that_was_copied_unstripped_elsewhere(self):
        found = layout(*_nii("s/P/P_T1", "s/P/P_T2", "u/P/P_T1_unstripped", "u/P/P_T2_unstripped"))
        assert found.subjects == {"P": {"t1n": "s/P/P_T1.nii.gz", "t2w": "s/P/P_T2.nii.gz"}}


class TestSeveralExams:
    def test_numbers_tell_subjects_apart_where_sequences_repeat(self):
        assert list(layout(*_nii("T1_001", "T2_001", "T1_002", "T2_002")).subjects) == ["001", "002"]

    def test_words_that_several_sequences_share_tell_exams_apart(self):
        found = layout(*_nii("P_T1_postop", "P_T2_postop", "P_T1_preop", "P_T2_preop"))
        assert set(found.subjects) == {"P_postop", "P_preop"}
        assert set(found.subjects["P_postop"]) == {"t1n", "t2w"}

    def test_time_points_named_like_sequences(self):
        names = [f"P1/{t}/P1_{t}_{s}" for t in ("T1", "T2") for s in ("T1", "T2", "FLAIR")]
        found = layout(*_nii(*names))
        assert set(found.subjects) == {"P1_T1", "P1_T2"}
        assert found.subjects["P1_T2"]["t2f"] == "P1/T2/P1_T2_FLAIR.nii.gz"

    def test_bids_sessions_that_only_the_folder_names(self):
        found = layout(*_nii("sub-1/ses-a/anat/sub-1_T1w", "sub-1/ses-b/anat/sub-1_T2w"))
        assert found.subjects == {
            "sub-1_ses-a": {"t1n": "sub-1/ses-a/anat/sub-1_T1w.nii.gz"},
            "sub-1_ses-b": {"t2w": "sub-1/ses-b/anat/sub-1_T2w.nii.gz"},
        }


class TestNames:
    def test_repeated_folders_take_those_above(self):
        found = layout(*_nii("P1/week-000/T1", "P2/week-000/T1", "P1/week-000/T2"))
        assert set(found.subjects) == {"P1_week-000", "P2_week-000"}

    def test_a_time_point_always_bears_its_patient(self):
        assert set(layout(*_nii("P1/week-000/T1", "P1/week-010/T1")).subjects) == {"P1_week-000", "P1_week-010"}
        assert list(layout(*_nii("P1/2020-01-02/T1")).subjects) == ["P1_2020-01-02"]

    def test_sites_are_told_where_patients_repeat(self):
        assert set(layout(*_nii("A/001/T1", "B/001/T1", "B/002/T1")).subjects) == {"A_001", "B_001", "002"}

    def test_a_name_that_all_folders_share_says_nothing(self):
        assert set(layout(*_nii("case01/scan-t1n", "case02/scan-t1n")).subjects) == {"case01", "case02"}

    def test_names_from_folders(self):
        files = _nii("A/sub-01/anat/sub-01_T1w", "B/sub-01/anat/sub-01_T2w", "P001/P001-t1n")
        assert set(layout(*files, name_from_folders=True).subjects) == {"A_sub-01", "B_sub-01", "P001"}


class TestDoubt:
    @pytest.mark.parametrize("odd", ["P_kernel", "P_contrast", "P_MPRAGE", "P_0001"])
    def test_an_image_that_is_not_understood_is_its_subjects(self, odd):
        found = layout(*_nii("d/P_T1", "d/P_T2", f"d/{odd}", "d/Q_T1"))
        assert found.unknown == {f"d/{odd}.nii.gz"}

    def test_post_on_every_sequence_is_no_contrast(self):
        found = layout(*_nii("P/P_T1_post", "P/P_T2_post", "P/P_FLAIR_post"))
        assert found.unknown == {"P/P_T1_post.nii.gz"}
        assert "t1c" not in found.subjects["P"]

    def test_a_stray_image_among_many_subjects_is_nobodys(self):
        found = layout(*_nii("a_t1", "a_t2", "b_t1", "b_t2", "atlas"))
        assert found.left == {"atlas.nii.gz"}

    def test_an_unknown_word_on_one_sequence(self):
        found = layout(*_nii("P/P_T1_foo", "P/P_T2", "P/P_FLAIR"))
        assert found.unknown == {"P/P_T1_foo.nii.gz"}

    def test_a_mask_is_no_doubt(self):
        found = layout(*_nii("P/images/P_T1", "P/masks/P_T1_mask"))
        assert not found.unknown
        assert found.others == {"P/masks/P_T1_mask.nii.gz"}


LAYOUTS = {
    "flat": "S{}-{}.nii.gz",
    "challenge": "S{0}/S{0}-{1}.nii.gz",
    "bids": "sub-S{0}/anat/sub-S{0}_{2}.nii.gz",
    "one name": "S{}/exam-{}.nii.gz",
    "no name": "S{}/{}.nii.gz",
    "visits": "S{}/week-1/{}.nii.gz",
    "folders of sequences": "S{}/{}/image.nii.gz",
    "sequences above": "{1}/S{0}.nii.gz",
}


def _count_steps(layout: str, subjects: int) -> int:
    """Steps of the interpreter: what time stands for, the same on every machine."""
    root = Path("/data")
    names = (("t1n", "T1w"), ("t2w", "T2w"), ("seg", "dseg"))
    images = [root / LAYOUTS[layout].format(f"{s:03}", *name) for s in range(subjects) for name in names]
    steps = 0

    def follow(frame, event, _):
        nonlocal steps
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        steps += event == "opcode"
        return follow

    before = sys.gettrace()
    sys.settrace(follow)
    try:
        exams, _ = group_images(images, root)
    finally:
        sys.settrace(before)
    assert len(exams) == subjects
    return steps


@pytest.mark.parametrize("layout", LAYOUTS)
def test_twice_as_many_subjects_cost_twice_as_much(layout):
    few, some, many = (_count_steps(layout, subjects) for subjects in (15, 30, 60))
    assert many - some < 2.2 * (some - few)
