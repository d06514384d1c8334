from __future__ import annotations

from tests.data.naming.layouts import layout


def _nii(*stems):
    return [f"{stem}.nii.gz" for stem in stems]


def test_a_folder_named_by_a_sequence_states_it_for_a_nameless_file():
    found = layout(*_nii("P/T1/image", "P/T2/image", "P/FLAIR/image"))
    assert found.subjects == {
        "P": {"t1n": "P/T1/image.nii.gz", "t2f": "P/FLAIR/image.nii.gz", "t2w": "P/T2/image.nii.gz"}
    }


def test_folders_of_sequences_with_files_named_by_subject():
    found = layout(*_nii("T1/P1", "T1/P2", "FLAIR/P1", "FLAIR/P2"))
    assert set(found.subjects) == {"P1", "P2"}
    assert found.subjects["P2"] == {"t1n": "T1/P2.nii.gz", "t2f": "FLAIR/P2.nii.gz"}


def test_a_folder_that_names_subject_and_sequence():
    assert set(layout(*_nii("P1_T1/scan", "P1_T2/scan")).subjects["P1"]) == {"t1n", "t2w"}


def test_a_folder_of_a_sequences_name_with_other_sequences_in_it_is_a_place():
    found = layout(*_nii("t1c/001/001-t1n", "t1c/001/001-t2w"))
    assert found.subjects == {"001": {"t1n": "t1c/001/001-t1n.nii.gz", "t2w": "t1c/001/001-t2w.nii.gz"}}


def test_a_folder_t1_may_hold_both_kinds():
    found = layout(*_nii("P/T1/T1", "P/T1/T1c", "P/T2/T2"))
    assert set(found.subjects["P"]) == {"t1n", "t1c", "t2w"}


def test_a_named_file_beside_a_nameless_one_is_the_sequence():
    found = layout(*_nii("P/T1/T1", "P/T1/foo", "P/T2/T2"))
    assert found.subjects["P"]["t1n"] == "P/T1/T1.nii.gz"
    assert found.unknown == {"P/T1/foo.nii.gz"}


def test_a_folder_with_an_images_ending():
    assert layout("B/B_t1.nii/B_t1.nii", "B/B_t2.nii/B_t2.nii").subjects.keys() == {"B"}
