from __future__ import annotations

from app.cli import main


def test_info_names_models_and_devices(weights_dir, capsys):
    assert main(["info", "--weights", str(weights_dir)]) == 0
    text = capsys.readouterr().out
    assert "tiny: generator" in text
    assert "cpu:" in text
