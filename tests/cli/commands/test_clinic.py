from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pydicom
import pytest

from app.cli import main
from app.inference.clinic import alignment
from app.registry.manifest import add_file, read_manifest
from tests.batch.helpers import names_in
from tests.dicom.servers import pacs
from tests.inference.clinic.dicom_heads import write_dicom_head
from tests.inference.clinic.helpers import STILL, write_heads, write_mask
from tests.preprocessing.quality import quality_file


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setattr(alignment, "register", lambda fixed, moving: STILL)
    files = write_heads(tmp_path / "head")
    write_mask(tmp_path / "mask.nii", files["t1n"])
    return tmp_path


def test_a_study_in_a_result_record_and_picture_out(study, weights_dir, capsys):
    arguments = ["clinic", str(study / "head"), str(study / "out"), "--mask", str(study / "mask.nii"),
                 "--weights", str(weights_dir), "--model", "regression"]  # fmt: skip
    assert main(arguments) == 0
    assert names_in(study / "out") == ["head-t2f.json", "head-t2f.nii.gz", "head-t2f.png"]
    assert json.loads((study / "out" / "head-t2f.json").read_text())["model"] == "regression"
    assert "on the grid of t2w" in capsys.readouterr().err
    assert main(arguments) == 0
    assert "kept" in capsys.readouterr().err


def test_less_than_was_asked_for_is_refused(study, weights_dir, capsys):
    arguments = ["clinic", str(study / "head"), str(study / "out"), "--mask", str(study / "mask.nii"),
                 "--weights", str(weights_dir)]  # fmt: skip
    asked = ["--min-expected-ssim", "0.9"]
    assert main([*arguments, "--model", "regression", *asked]) == 2
    assert "does not tell what to expect of its images" in capsys.readouterr().err
    telling = study / "telling"
    shutil.copytree(weights_dir, telling)
    add_file(read_manifest(telling).entry("tiny"), "quality", quality_file())
    arguments[-1] = str(telling)
    assert main([*arguments, "--model", "tiny", *asked]) == 1
    assert "its t2f is expected to reach an SSIM of 0.700" in capsys.readouterr().err
    assert not (study / "out").exists() or not names_in(study / "out")
    assert main([*arguments, "--model", "tiny"]) == 0
    # What is there is no better by having been made before.
    assert main([*arguments, "--model", "tiny", *asked]) == 1
    assert main([*arguments, "--model", "tiny", "--min-expected-ssim", "0.7"]) == 0
    assert "kept" in capsys.readouterr().err


def test_another_patients_result_of_the_same_name_is_neither_kept_nor_overwritten(study, weights_dir, capsys):
    arguments = ["clinic", str(study / "head"), str(study / "out"), "--mask", str(study / "mask.nii"),
                 "--weights", str(weights_dir), "--model", "regression"]  # fmt: skip
    assert main(arguments) == 0
    before = (study / "out" / "head-t2f.nii.gz").read_bytes()
    path = study / "head" / "head-t1n.nii"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + np.int16(1), image.affine, image.header), path)
    assert main(arguments) == 2
    assert "was made from other inputs or in another way" in capsys.readouterr().err
    assert (study / "out" / "head-t2f.nii.gz").read_bytes() == before
    assert main([*arguments, "--overwrite"]) == 0


def test_what_tetrad_made_is_no_scan(study, weights_dir, capsys):
    arguments = ["--mask", str(study / "mask.nii"), "--weights", str(weights_dir), "--model", "regression"]
    assert main(["clinic", str(study / "head"), str(study / "out"), *arguments]) == 0
    made = study / "out" / "head-t2f.nii.gz"
    code = main(["clinic", str(study / "head"), str(study / "again"), *arguments, "--t2f", str(made), "--make", "t1c"])
    assert code == 1
    assert "was made by Tetrad and is no scan" in capsys.readouterr().err


def test_check_says_what_is_taken_for_what(study, capsys):
    assert main(["clinic", str(study / "head"), "--check"]) == 0
    text = capsys.readouterr().out
    assert "t1n  " in text
    assert "to make: t2f" in text


def test_a_file_may_be_named(study, capsys):
    head = study / "head"
    (head / "head-t1n.nii").rename(head / "scan7.nii")
    assert main(["clinic", str(head), "--check"]) == 1
    assert "scan7" in capsys.readouterr().err
    assert main(["clinic", str(head), "--check", "--t1n", str(head / "scan7.nii"), "--make", "t2f"]) == 0


def test_results_may_be_named(study, weights_dir, capsys):
    arguments = ["clinic", str(study / "head"), str(study / "out"), "--mask", str(study / "mask.nii"),
                 "--weights", str(weights_dir), "--model", "regression", "--id"]  # fmt: skip
    assert main([*arguments, "P7"]) == 0
    assert names_in(study / "out") == ["P7-t2f.json", "P7-t2f.nii.gz", "P7-t2f.png"]
    assert main([*arguments, "../P7"]) == 2
    assert "can be no file's name" in capsys.readouterr().err


@pytest.mark.parametrize("arguments,code,message", [
    (["OUT"], 2, "give the folder of the result"),
    (["SAME"], 2, "is the study"),
])  # fmt: skip
def test_places(study, capsys, arguments, code, message):
    place = {"OUT": [], "SAME": [str(study / "head")]}[arguments[0]]
    assert main(["clinic", str(study / "head"), *place]) == code
    assert message in capsys.readouterr().err


def test_several_exams_are_listed(study, capsys):
    write_heads(study / "other")
    assert main(["clinic", str(study), "--check"]) == 2
    assert "holds 2 exams (head, other)" in capsys.readouterr().err


class TestDicom:
    @pytest.fixture
    def dicom(self, study):
        return write_dicom_head(study / "dicom", study / "head")

    def test_a_series_in_a_series_out(self, study, dicom, weights_dir, capsys):
        arguments = ["clinic", str(dicom), str(study / "out"), "--dicom", "--mask", str(study / "mask.nii"),
                     "--weights", str(weights_dir), "--model", "regression"]  # fmt: skip
        assert main(arguments) == 0
        files = sorted((study / "out" / "dicom-t2f-dicom").iterdir())
        reference = [pydicom.dcmread(f) for f in (dicom / "3").iterdir()]
        assert len(files) == len(reference)
        first = pydicom.dcmread(files[0])
        assert first.SeriesDescription.startswith("SYNTHETIC T2 FLAIR")
        assert {d.StudyInstanceUID for d in reference} == {first.StudyInstanceUID}
        assert main([*arguments, "--overwrite"]) == 0
        assert pydicom.dcmread(files[0]).SOPInstanceUID == first.SOPInstanceUID

    def test_check_tells_every_series(self, dicom, capsys):
        assert main(["clinic", str(dicom), "--check"]) == 0
        text = capsys.readouterr().out
        assert "contrast by header" in text
        assert "t2w is series 3" in text
        assert "to make: t2f" in text

    def test_slices_are_checked_before_anything_is_decoded(self, dicom, capsys):
        for number, path in enumerate(sorted((dicom / "3").iterdir())):
            if number % 4 == 1:
                path.unlink()
        assert main(["clinic", str(dicom), "--check"]) == 1
        assert "series 3" in capsys.readouterr().err

    def test_nifti_has_no_series_to_derive_from(self, study, capsys):
        assert main(["clinic", str(study / "head"), str(study / "out"), "--dicom"]) == 2
        assert "holds no DICOM" in capsys.readouterr().err

    def test_it_is_sent_to_a_node(self, study, dicom, weights_dir, capsys):
        arguments = ["clinic", str(dicom), str(study / "out"), "--mask", str(study / "mask.nii"),
                     "--weights", str(weights_dir), "--model", "regression", "--send"]  # fmt: skip
        with pacs() as node:
            assert main([*arguments, str(node.address)]) == 0
            assert len(node.images) == len(names_in(study / "out" / "dicom-t2f-dicom"))
            assert main([*arguments, str(node.address)]) == 0
            assert "was sent to" in capsys.readouterr().err
        assert main([*arguments, "PACS"]) == 2
        assert "names no DICOM node" in capsys.readouterr().err


def test_a_page_to_scroll_through(study, weights_dir):
    arguments = ["clinic", str(study / "head"), str(study / "out"), "--mask", str(study / "mask.nii"), "--view",
                 "--weights", str(weights_dir), "--model", "regression"]  # fmt: skip
    assert main(arguments) == 0
    assert "head-t2f-view.html" in names_in(study / "out")
