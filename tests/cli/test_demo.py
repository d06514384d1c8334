from __future__ import annotations

from app.cli import main


def test_demo(tmp_path, capsys):
    """By the fastest model; the image's demo (`test_challenge.py`) is by the default."""
    assert main(["demo", "--output", str(tmp_path / "demo"), "--drop", "t1c", "--model", "regression"]) == 0
    text = capsys.readouterr().out
    assert (tmp_path / "demo" / "phantom-t1c.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "demo" / "output" / "phantom-t1c.nii.gz").is_file()
    assert not (tmp_path / "demo" / "input" / "phantom" / "phantom-t1c.nii.gz").exists()
    assert "phantom-t1c.png" in text
