from __future__ import annotations

from pathlib import Path

import pytest

from app.core.errors import UsageError
from app.data.cases import Case
from app.data.segmentations import find_segmentations


def _touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_by_name_and_by_folder(tmp_path):
    _touch(tmp_path, "a/a-seg.nii.gz", "b/seg.nii", "c/c_seg.nii.gz")
    assert {s: p.name for s, p in find_segmentations(tmp_path).items()} == {
        "a": "a-seg.nii.gz", "b": "seg.nii", "c": "c_seg.nii.gz",
    }  # fmt: skip


def test_the_only_one_beside_a_subject_may_have_another_name(tmp_path):
    _touch(tmp_path, "p/old-seg.nii.gz", "p/p-t1n.nii.gz")
    case = Case("p", {"t1n": tmp_path / "p" / "p-t1n.nii.gz"})
    assert find_segmentations(tmp_path, [case])["p"].name == "old-seg.nii.gz"


def test_one_beside_the_sequences_goes_before_one_elsewhere(tmp_path):
    _touch(tmp_path, "a/p-seg.nii.gz", "p/p-seg.nii.gz", "p/p-t1n.nii.gz")
    case = Case("p", {"t1n": tmp_path / "p" / "p-t1n.nii.gz"})
    assert find_segmentations(tmp_path, [case])["p"].parent.name == "p"


def test_a_folder_that_is_not_there():
    with pytest.raises(UsageError, match="does not exist"):
        find_segmentations(Path("nowhere"))
