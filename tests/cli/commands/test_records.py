from __future__ import annotations

from app.cli import main


def test_parts_become_one_record(tmp_path, subject, weights_dir, capsys):
    for part in ("0", "1"):
        assert main(["synthesize", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--weights",
                     str(weights_dir), "--model", "regression", "--report-dir", str(tmp_path / "report"),
                     "--part-id", part, "--num-parts", "2"]) == 0  # fmt: skip
    assert main(["merge-records", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "tetrad-run.html").exists()
    assert "2 parts, 1 subjects (1 made, 0 kept, 0 failed)" in capsys.readouterr().err


def test_without_parts_one_sentence(tmp_path, capsys):
    assert main(["merge-records", str(tmp_path)]) == 3
    assert "holds no record of a part" in capsys.readouterr().err
