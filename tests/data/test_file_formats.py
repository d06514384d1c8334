from __future__ import annotations

import pytest

from app.data.file_formats import image_stem, is_dicom


@pytest.mark.parametrize("name,stem", [("a_T1.nii.gz", "a_T1"), ("A.NII", "A"), ("x.mgz", "x"), ("x.json", None)])
def test_stem_of_an_image(name, stem):
    assert image_stem(name) == stem


def test_dicom_is_told_by_its_preamble(tmp_path):
    file = tmp_path / "IM0001"
    file.write_bytes(bytes(128) + b"DICM" + bytes(10))
    assert is_dicom(file)
    file.write_bytes(b"text")
    assert not is_dicom(file)
    assert not is_dicom(tmp_path / "none")
