from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from torch.distributed.run import get_args_parser

from app.cli import build_parser
from app.training.checkpoint import LAST, load_state
from tests.training.helpers import SMALL


def test_the_readmes_command_for_many_gpus_is_one():
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ +torchrun (.+)$", readme, re.MULTILINE)
    given = get_args_parser().parse_args(line.split())
    assert (given.nproc_per_node, given.module, given.training_script) == ("8", True, "app")
    options = build_parser().parse_args(given.training_script_args)
    assert (options.recipe, options.run) == ("r8", Path("runs/r8"))


def test_two_processes_share_the_work(training_data, tmp_path):
    changes = [
        *SMALL,
        "losses.tversky=0",
        "schedule.steps=2",
        "schedule.targets_per_batch=1",
        "network.confidence='bounded'",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         Path(__file__).parent / "torchrun_worker.py", training_data, tmp_path / "run", "smoke", *changes],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[:6000]
    assert load_state(tmp_path / "run" / LAST).step == 2
