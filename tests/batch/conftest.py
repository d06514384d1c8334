from __future__ import annotations

import pytest

from app.batch import run_record


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
