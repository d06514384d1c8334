"""Holds the layering: who may import whom, and what must stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

APP = Path(__file__).parent.parent / "app"

FLOORS = {
    0: {"constants", "errors", "start", "types"},
    1: {"config", "files", "volume", "encode", "views", "sliding", "graphs", "models", "intensity", "interrupts"},
    2: {"cases", "preprocess", "metrics", "weights", "networks", "phantom", "trace", "runtime"},
    3: {"backends", "inference", "inputs", "resident", "fuse", "postprocess", "refine", "export"},
    4: {"pipeline", "synthesizer", "report", "training", "evaluate", "calibrate", "downstream", "dropout"},
    5: {"batch", "fleet", "flow", "worker", "demo", "info", "baselines"},
    6: {"cli", "__main__"},
}
#: Neighbours that may be used on the same floor: {module: {used}}.
SAME_FLOOR = {
    "networks": {"weights"},
    "synthesizer": {"pipeline"},
    "encode": {"files", "volume"},
    "inference": {"backends"},
    "resident": {"backends", "fuse", "inference"},
    "refine": {"backends", "inference"},
    "batch": {"fleet", "flow", "worker"},
    "fleet": {"flow", "worker"},
    "flow": {"worker"},
    "calibrate": {"evaluate"},
    "demo": {"batch"},
    "downstream": {"evaluate"},
    "training": {"pipeline", "synthesizer", "evaluate", "downstream"},
    "__main__": {"cli"},
}


def _floor(module: str) -> int:
    return next(floor for floor, names in FLOORS.items() if module in names)


def _imports() -> list[tuple[str, str]]:
    pairs = []
    for path in APP.rglob("*.py"):
        parts = path.relative_to(APP).with_suffix("").parts
        if parts == ("__init__",):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("app."):
                pairs.append((parts[0], node.module.split(".")[1]))
    return pairs


def test_every_module_has_a_floor():
    names = {p.relative_to(APP).with_suffix("").parts[0] for p in APP.rglob("*.py")} - {"__init__"}
    assert names == set().union(*FLOORS.values())


def test_imports_point_downwards():
    wrong = [(a, b) for a, b in _imports() if a != b and _floor(b) >= _floor(a) and b not in SAME_FLOOR.get(a, set())]
    assert not wrong


def test_nothing_but_the_command_line_imports_training():
    assert {a for a, b in _imports() if b == "training"} <= {"cli", "training"}


@pytest.mark.parametrize("module", ["cases", "config", "constants", "errors", "cli", "volume", "encode", "runtime"])
def test_light_modules_do_not_import_torch(module: str):
    code = f"import sys, app.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_networks_read_no_files():
    for path in (APP / "models").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "open(" not in text
        assert "pathlib" not in text
