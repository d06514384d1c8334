from __future__ import annotations

import pytest

from app.cli import main
from app.cli.commands.info import describe
from app.core.errors import WeightsError


def test_info_names_models_and_devices(weights_dir, capsys):
    assert main(["info", "--weights", str(weights_dir)]) == 0
    text = capsys.readouterr().out
    assert "tiny: generator" in text
    assert "cpu:" in text


def test_it_names_defaults_versions_and_devices(weights_dir):
    lines = describe(weights_dir).splitlines()
    assert lines[0].startswith("tetrad ")
    assert any(line.startswith("  regression: ") and "[default, fallback]" in line for line in lines)
    assert any(line.startswith("  numpy ") for line in lines)
    assert lines.index("devices:") < lines.index("packages:")


def test_without_a_manifest_there_is_nothing_to_describe(tmp_path):
    with pytest.raises(WeightsError):
        describe(tmp_path)
