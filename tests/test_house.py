"""What holds the tree together: where things are, words that are gone, and what a command must not import.

Who may import whom is held by import-linter (`pyproject.toml`).
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
APP, TESTS = ROOT / "app", ROOT / "tests"
MODULES = sorted(p.relative_to(APP) for p in APP.rglob("*.py") if p.stem not in {"__init__", "__main__"})
#: Packages, each a folder with modules of its own.
PACKAGES = sorted({m.parent for m in MODULES})
MOST_NAMES, MOST_MODULES = 14, 14
#: Where tasks are registered by name.
REGISTRY = {"app/training/tasks/__init__.py", "app/training/tasks/base.py"}
#: Modules that a fresh process may have loaded for `--help`; Python alone has some thirty.
MOST_IMPORTED = 200


class TestTree:
    @pytest.mark.parametrize("module", MODULES, ids=str)
    def test_every_module_has_its_test(self, module):
        assert (TESTS / module.parent / f"test_{module.name}").is_file()

    def test_the_first_look_is_short(self):
        names = [p.name for p in APP.iterdir() if p.name != "__pycache__"]
        assert len(names) <= MOST_NAMES, sorted(names)

    @pytest.mark.parametrize("package", PACKAGES, ids=str)
    def test_no_folder_is_a_corridor(self, package):
        modules = [m.name for m in MODULES if m.parent == package]
        assert len(modules) <= MOST_MODULES, modules


@pytest.mark.parametrize(
    "words,allowed",
    [
        (r"\.details\b", set()),
        (r"\bpredict_with_error\b", set()),
        (r"\brecipe\.task\s*(==|!=|in\b|not in\b)", REGISTRY),
    ],
)
def test_what_is_gone_stays_gone(words, allowed):
    places = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted(APP.rglob("*.py"))
        if str(path.relative_to(ROOT)) not in allowed
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(words, line)
    ]
    assert not places


def _imported(code: str) -> set[str]:
    """Names of all modules that a fresh process has after some code."""
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(run.stdout.split())


class TestLightImports:
    PARSER = "from app.cli import build_parser; build_parser()"

    def test_the_command_line_loads_no_library(self):
        assert not _imported(self.PARSER) & {"torch", "numpy", "nibabel", "pydantic", "scipy"}

    def test_check_loads_no_torch(self):
        assert "torch" not in _imported(f"{self.PARSER}; import app.data.cases, app.data.discovery")

    @pytest.mark.parametrize("module", ["app.batch.run", "app.data.discovery"])
    def test_synthesis_and_check_load_nothing_of_training(self, module):
        names = _imported(f"{self.PARSER}; import {module}")
        assert module in names
        assert not {n for n in names if n.startswith("app.training")}

    def test_help_answers_at_once(self):
        # Modules are what its time goes into; their number is the same on every machine.
        assert len(_imported(self.PARSER)) < MOST_IMPORTED
