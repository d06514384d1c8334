from __future__ import annotations

from app.data.naming.versions import RAW, rank
from tests.data.naming.layouts import layout


def test_the_version_without_skull_goes_before():
    names = [f"P/{s}{v}.nii.gz" for s in ("T1", "T2") for v in ("", "_brain", "_unbiased", "_orig")]
    found = layout(*names)
    assert found.subjects == {"P": {"t1n": "P/T1_brain.nii.gz", "t2w": "P/T2_brain.nii.gz"}}
    assert len(found.others) == 6


def test_the_version_that_most_sequences_have_goes_first():
    found = layout("P/P_T1.nii.gz", "P/P_T2.nii.gz", "P/P_FLAIR.nii.gz", "P/P_T1_brain.nii.gz")
    assert found.subjects["P"]["t1n"] == "P/P_T1.nii.gz"


def test_with_and_without_skull_are_not_mixed():
    found = layout("P/P_T1_brain.nii.gz", "P/P_T1c_brain.nii.gz", "P/P_T2.nii.gz")
    assert set(found.subjects["P"]) == {"t1n", "t1c"}
    assert found.unknown == {"P/P_T2.nii.gz"}


def test_two_files_of_one_version_are_runs():
    found = layout("P/P_run-1_T1.nii.gz", "P/P_T1_run-1.nii.gz", "P/P_T1_run-2.nii.gz")
    assert found.runs["P t1n"] == ["P/P_T1_run-1.nii.gz", "P/P_T1_run-2.nii.gz"]


def test_ranks():
    ranks = [rank(frozenset(words)) for words in ({"bet", "reg"}, (), {"n4"}, {"unstripped"})]
    assert ranks == [0, 1, 2, RAW]
