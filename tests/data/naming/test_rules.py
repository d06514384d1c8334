from __future__ import annotations

from pathlib import Path

import pytest

from app.core.errors import UsageError
from app.data.naming.rules import parse_rules
from tests.data.naming.layouts import layout

ROOT = Path("/in")


def _read(rule, name):
    return parse_rules([rule])[0].read(ROOT / name, ROOT)


def test_the_first_star_is_the_subject():
    reading = _read("t1c=*_POST.nii.gz", "P/P7_post.nii.gz")
    assert (reading.subject, reading.sequence, reading.sure) == ("P7", "t1c", True)


def test_a_pattern_with_a_slash_is_of_the_path():
    assert _read("t1c=contrast/*.nii.gz", "contrast/P7.nii.gz").subject == "P7"
    assert _read("t1c=contrast/*.nii.gz", "plain/P7.nii.gz") is None
    assert _read("t1c=*/post/scan.nii.gz", "P7/post/scan.nii.gz").subject == ""


def test_without_a_star_the_folder_names_the_subject():
    assert layout("P/weird.nii.gz", "P/T1.nii.gz", rules=["t2w=weird.nii.gz"]).subjects == {
        "P": {"t1n": "P/T1.nii.gz", "t2w": "P/weird.nii.gz"}
    }


def test_none_passes_files_over():
    found = layout("P/P_T1.nii.gz", "P/P_T1_old.nii.gz", rules=["none=*_old.nii.gz"])
    assert found.subjects == {"P": {"t1n": "P/P_T1.nii.gz"}}
    assert found.others == {"P/P_T1_old.nii.gz"}


def test_nnunet_channels_can_be_taught():
    rules = ["t1n=*_0000.nii.gz", "t1c=*_0001.nii.gz", "t2w=*_0002.nii.gz"]
    found = layout(*(f"imagesTr/B_001_000{i}.nii.gz" for i in range(3)), rules=rules)
    assert list(found.subjects) == ["B_001"]
    assert set(found.subjects["B_001"]) == {"t1n", "t1c", "t2w"}


@pytest.mark.parametrize("text", ["t1c", "t1c=", "t3=*.nii", "=x"])
def test_a_rule_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="is no rule"):
        parse_rules([text])
