from __future__ import annotations

import pytest

from app.cli import main
from app.cli.commands.demo import run_demo
from app.core.errors import CaseError


def test_demo(tmp_path, capsys):
    """By the fastest model; the image's demo (`test_challenge.py`) is by the default."""
    assert main(["demo", "--output", str(tmp_path / "demo"), "--drop", "t1c", "--model", "regression"]) == 0
    text = capsys.readouterr().out
    assert (tmp_path / "demo" / "phantom-t1c.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "demo" / "output" / "phantom-t1c.nii.gz").is_file()
    assert not (tmp_path / "demo" / "input" / "phantom" / "phantom-t1c.nii.gz").exists()
    assert "phantom-t1c.png" in text


def test_a_failed_run_is_said_to_have_failed(tmp_path, monkeypatch):
    monkeypatch.setattr("app.cli.commands.demo.run", lambda _: None)
    monkeypatch.setattr("app.cli.commands.demo.exit_code_of", lambda _: 1)
    with pytest.raises(CaseError, match="the demo failed"):
        run_demo(tmp_path, "t2f", 0, "cpu", "regression")
