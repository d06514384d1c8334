"""What `synthesize` says of exams as scanned; the work itself: `tests/batch/processors/test_clinic_processor.py`."""

from __future__ import annotations

import pytest

from app.cli import main
from app.dicom import destination
from app.inference.clinic import alignment, pipeline
from app.inference.clinic.brain import read_mask
from tests.batch.helpers import names_in
from tests.inference.clinic.helpers import STILL, write_heads, write_mask


@pytest.fixture
def call(tmp_path, weights_dir, capsys):
    (tmp_path / "in" / "a").mkdir(parents=True)

    def run(*options):
        code = main([str(a) for a in ("synthesize", "--input", tmp_path / "in", "--output", tmp_path / "out",
                                      "--weights", weights_dir, "--model", "regression", *options)])  # fmt: skip
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    "options,message",
    [
        (["--dicom"], "give --clinic as well"),
        (["--send", "PACS@h:1"], "give --clinic as well"),
        (["--clinic", "--stamp"], "give --dicom or --send"),
        (["--allow-other-study"], "give --clinic as well"),
        (["--series-names", "names.toml"], "give --clinic as well"),
        (["--clinic", "--series-names", "no.toml"], "no.toml cannot be read"),
        (["--clinic", "--send", "PACS"], "names no DICOM node"),
        (["--clinic", "--confidence-dir", "maps"], "have no maps of confidence"),
        (["--view"], "give one with --report-dir"),
    ],
)
def test_options_that_do_not_go_together(call, options, message):
    code, text = call(*options)
    assert code == 2
    assert message in text


def test_sending_without_the_package(call, monkeypatch):
    monkeypatch.setattr(destination.importlib.util, "find_spec", lambda name: None)
    code, text = call("--clinic", "--send", "PACS@h:1")
    assert code == 2
    assert "pip install pynetdicom" in text


def test_a_folder_without_an_exam_fails_it_alone(call):
    code, text = call("--clinic")
    assert code == 1
    assert "holds no sequence that is understood" in text


def test_dicom_without_the_option_is_told_of_it(call):
    code, text = call()
    assert code == 3
    assert "for DICOM give --clinic" in text


def test_exams_are_completed(call, tmp_path, monkeypatch):
    files = write_heads(tmp_path / "in" / "a")
    mask, found = write_mask(tmp_path / "mask.nii", files["t1n"]), pipeline.brain_of
    monkeypatch.setattr(alignment, "register", lambda fixed, moving: STILL)
    monkeypatch.setattr(pipeline, "brain_of", lambda exam, scans, given: found(exam, scans, read_mask(mask, scans)))
    assert call("--clinic", "--view")[0] == 0
    assert names_in(tmp_path / "out") == ["a-t2f-view.html", "a-t2f.json", "a-t2f.nii.gz", "a-t2f.png"]
