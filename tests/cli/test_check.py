"""The command that says what would be done."""

from __future__ import annotations

import subprocess
import sys

from app.cli import main


def test_table(tmp_path, write_subject, capsys):
    write_subject(tmp_path / "in" / "sub01")
    write_subject(tmp_path / "in" / "sub02", lacks=())
    assert main(["check", "--input", str(tmp_path / "in")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["sub01", "t1c,", "t1n,", "t2w", "t2f", "model"]
    assert lines[2].split() == ["sub02", "t1c,", "t1n,", "t2f,", "t2w", "-", "complete"]


def test_nothing_to_do(tmp_path, write_subject, capsys):
    write_subject(tmp_path / "in" / "sub02", lacks=())
    assert main(["check", "--input", str(tmp_path / "in")]) == 3
    assert "Nothing to do" in capsys.readouterr().err


def test_what_will_fail(subject, tmp_path, capsys):
    subject["t2w"].write_text("x")
    assert main(["check", "--input", str(tmp_path / "in"), "--on-error", "skip"]) == 1
    assert "sub01-t2w.nii.gz" in capsys.readouterr().err
    assert main(["check", "--input", str(tmp_path / "in")]) == 0
    assert "fallback" in capsys.readouterr().out


def test_torch_is_not_imported(subject, tmp_path):
    code = (
        "import sys; from app.cli import main; "
        f"code = main(['check', '--input', {str(tmp_path / 'in')!r}]); "
        "sys.exit(99 if 'torch' in sys.modules else code)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
