from __future__ import annotations

import pytest

from app.batch import run_record
from app.inference.clinic import alignment, pipeline
from app.inference.clinic.brain import read_mask
from tests.inference.clinic.dicom_heads import write_dicom_head
from tests.inference.clinic.helpers import STILL, write_mask


@pytest.fixture
def three(tmp_path, write_subject):
    """Three subjects, the middle one with a damaged input."""
    for name in ("a", "b", "c"):
        write_subject(tmp_path / "in" / name)
    (tmp_path / "in" / "b" / "b-t1n.nii.gz").write_bytes(b"\x1f\x8b damaged")
    return tmp_path


@pytest.fixture
def two_of_one(tmp_path, write_subject):
    """One subject twice, each time without another sequence, as `dropout --each` leaves them."""
    for lacking in ("t1c", "t2f"):
        write_subject(tmp_path / "in" / lacking / "s", lacks=(lacking,))
    return tmp_path


@pytest.fixture
def no_page(monkeypatch):
    """Runs write their record alone: pictures take longer than all the rest."""
    monkeypatch.setattr(run_record, "write_run_report", lambda *_: None)


@pytest.fixture(scope="session")
def scanned_heads(tmp_path_factory):
    """A head as DICOM in `dicom`, as NIfTI in `head`, and its brain in `mask.nii`."""
    folder = tmp_path_factory.mktemp("scanned")
    write_dicom_head(folder / "dicom", folder / "head")
    write_mask(folder / "mask.nii", folder / "head" / "head-t1n.nii")
    return folder


@pytest.fixture
def known_brain(scanned_heads, monkeypatch):
    """Nobody moved, and the brain is known: both take seconds, and have tests of their own."""
    found = pipeline.brain_of
    monkeypatch.setattr(alignment, "register", lambda fixed, moving: STILL)
    monkeypatch.setattr(
        pipeline,
        "brain_of",
        lambda exam, scans, given: found(exam, scans, given or read_mask(scanned_heads / "mask.nii", scans)),
    )
