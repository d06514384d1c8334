"""What lies beside or below an exam is never made anew in silence, nor mixed into it."""

from __future__ import annotations

from tests.data.naming.layouts import layout


def _nii(*stems):
    return [f"{stem}.nii.gz" for stem in stems]


def test_an_unstripped_scan_alone_is_a_doubt():
    found = layout(*_nii("s/P/P_T1", "s/P/P_T1c", "s/P/P_FLAIR", "u/P/P_T1_unstripped", "u/P/P_T2_unstripped"))
    assert set(found.subjects["P"]) == {"t1n", "t1c", "t2f"}
    assert found.unknown == {"u/P/P_T2_unstripped.nii.gz"}
    assert found.others == {"u/P/P_T1_unstripped.nii.gz"}


def test_a_sequence_in_a_folder_below_is_a_doubt():
    found = layout(*_nii("P1/T1", "P1/T2", "P1/FLAIR", "P1/post/T1c"))
    assert "t1c" not in found.subjects["P1"]
    assert found.unknown == {"P1/post/T1c.nii.gz"}


def test_what_the_exam_above_has_is_no_doubt_of_it():
    found = layout(*_nii("P1/T1", "P1/T2", "P1/week-010/T1", "P1/week-010/T2"))
    assert set(found.subjects) == {"P1", "P1_week-010"}
    assert not found.unknown


def test_a_nameless_file_beside_a_subject_of_another_name_is_a_doubt():
    found = layout(*_nii("study/T1", "study/P7_T2", "study/P7_FLAIR", "study/P7_T1c"))
    assert list(found.subjects) == ["P7"]
    assert found.unknown == {"study/T1.nii.gz"}


def test_another_patients_folder_below_is_none_of_an_exams():
    found = layout(*_nii("site/P1_T1", "site/P1_T2", "site/P2/P2_T1c"))
    assert set(found.subjects) == {"P1", "P2"}
    assert not found.unknown
