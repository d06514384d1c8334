from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Loads matplotlib and tells where it took its settings from.
SCRIPT = (
    "import os, sys; sys.path.insert(0, sys.argv[1])\n"
    "from pathlib import Path\n"
    "from app.report import plotting\n"
    "if len(sys.argv) > 2: plotting._PLACES = ()\n"
    "plotting.figure_class(Path(sys.argv[2]) if len(sys.argv) > 2 and sys.argv[2] else None)\n"
    "import matplotlib; print(matplotlib.rcParams['font.size'], os.environ.get('MPLCONFIGDIR'))\n"
)


@pytest.fixture
def load(tmp_path):
    """Loads matplotlib in a fresh process, from a folder with settings of somebody else's."""
    (tmp_path / "matplotlibrc").write_text("font.size: 50\n")

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {k: v for k, v in os.environ.items() if k not in {"TMPDIR", "TEMP", "TMP"}}
        command = [sys.executable, "-c", SCRIPT, str(ROOT), *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env={**settings, **environment}, check=False, capture_output=True, text=True
        )

    return run


def test_nobody_elses_settings_count(load, tmp_path):
    done = load(MATPLOTLIBRC=str(tmp_path), MPLCONFIGDIR=str(tmp_path), HOME=str(tmp_path))
    assert done.stdout == f"10.0 {tmp_path}\n", done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["matplotlibrc"]


def test_without_a_temporary_folder_the_spare_one_serves(load, tmp_path):
    spare = tmp_path / "report"
    spare.mkdir()
    assert load(str(spare)).stdout == "10.0 None\n"
    assert list(spare.iterdir()) == []


def test_without_any_folder_one_error(load, tmp_path):
    done = load("")
    assert "no folder for temporary files" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["matplotlibrc"]
