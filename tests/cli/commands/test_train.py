from __future__ import annotations

from app.cli import main
from app.core.errors import ExitCode


def test_an_unknown_recipe_or_key(tmp_path, capsys):
    arguments = ["--data", str(tmp_path), "--run", str(tmp_path / "run")]
    assert main(["train", "r9", *arguments]) == ExitCode.USAGE
    assert "r8" in capsys.readouterr().err
    assert main(["train", "r1", *arguments, "--set", "loses.l1=1"]) == ExitCode.USAGE
    assert "did you mean 'losses'" in capsys.readouterr().err
