from __future__ import annotations

from app.cli import build_parser, main
from tests.batch.helpers import names_in


def test_the_command(tmp_path, write_subject, segmenting_weights, capsys):
    write_subject(tmp_path / "in" / "a")
    arguments = ["segment", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--device", "cpu",
                 "--weights", str(segmenting_weights), "--with-synthesis", str(tmp_path / "made")]  # fmt: skip
    assert main(arguments) == 0
    assert "a: t2f, seg made from t1c, t1n, t2w" in capsys.readouterr().err
    assert names_in(tmp_path / "out") == ["a-seg.nii.gz"]
    assert names_in(tmp_path / "made") == ["a-t2f.nii.gz"]
    assert main([*arguments, "--model", "one", "--overwrite"]) == 0
    assert "(one)" in capsys.readouterr().err


def test_resume_and_overwrite_contradict_each_other(tmp_path, capsys):
    assert main(["segment", "--input", str(tmp_path), "--resume", "--overwrite"]) == 2
    assert "contradict" in capsys.readouterr().err


def test_options_of_images_are_none_of_it():
    commands = build_parser()._actions
    parser = next(a for a in commands if hasattr(a, "choices") and "segment" in (a.choices or {})).choices["segment"]
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert {"--input", "--output", "--part-id", "--report-dir", "--name", "--resume", "--with-synthesis"} <= flags
    assert not {"--fusion", "--refine", "--confidence-dir", "--complete-all", "--intensity"} & flags
