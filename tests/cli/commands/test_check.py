"""The command that says what would be done."""

from __future__ import annotations

import json
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


def test_what_was_guessed_is_shown(tmp_path, write_subject, capsys):
    names = {"t1c": "P_T1_post.nii.gz", "t1n": "P_T1.nii.gz", "t2f": "P_FLAIR.nii.gz", "t2w": "P_T2.nii.gz"}
    write_subject(tmp_path / "P", names, lacks=("t2w",))
    assert main(["check", "--input", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "What each file was taken for:" in shown
    assert "t1c  " in shown
    assert "P_T1_post.nii.gz" in shown


def test_plain_names_are_shown_when_asked(tmp_path, subject, capsys):
    assert main(["check", "--input", str(tmp_path / "in")]) == 0
    assert "taken for" not in capsys.readouterr().out
    assert main(["check", "--input", str(tmp_path / "in"), "--verbose"]) == 0
    assert f"t1n  {subject['t1n']}" in capsys.readouterr().out


def test_json(tmp_path, subject, capsys):
    assert main(["check", "--input", str(tmp_path / "in"), "--json"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)["subjects"]
    assert entry["to_make"] == ["t2f"]
    assert {f["sequence"] for f in entry["files"]} == {"t1c", "t1n", "t2w"}


def test_names_that_act_on_a_terminal_are_shown_escaped(tmp_path, write_subject, capsys):
    name = "a\x1b[2J\nERROR: forged"
    write_subject(tmp_path / name, {m: f"{name}-{m}.nii.gz" for m in ("t1c", "t1n", "t2f", "t2w")})
    assert main(["check", "--input", str(tmp_path), "--verbose"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\nERROR" not in shown
