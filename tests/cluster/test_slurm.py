"""The script of `docs/cluster/slurm.sh`, run by a real Slurm."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.batch.run import run
from app.cli import main
from tests.batch.helpers import config_of, write_copies
from tests.cluster.slurm_cluster import SlurmCluster, reason_to_skip, slurm_cluster

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "cluster" / "slurm.sh"


@pytest.fixture
def cluster() -> Iterator[SlurmCluster]:
    if (reason := reason_to_skip()) is not None:
        pytest.skip(reason)
    # Sockets need a short path.
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as name,
        slurm_cluster(Path(name)) as started,
    ):
        yield started


def _contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def _await_part(cluster: SlurmCluster, log: Path) -> None:
    """Wait until a task has made its first subject."""
    deadline = time.monotonic() + 120
    while not log.is_file() or "made from" not in log.read_text():
        assert time.monotonic() < deadline, cluster.logs()
        time.sleep(0.02)


def test_tasks_that_are_killed_and_requeued_do_the_rest(cluster, tmp_path, write_subject, weights_dir):
    """Task 1 is requeued as by a pre-emption; task 2 gets the signal before its time is over, and requeues itself."""
    write_copies(write_subject, tmp_path / "in", [f"s{i:02}" for i in range(30)])
    run(config_of(tmp_path, weights_dir, model="tiny", precision="fp32"))
    expected = _contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    program = cluster.place / "tetrad"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m app "$@"\n')
    program.chmod(0o755)
    job = cluster.call(
        "sbatch", "--parsable", "--array=0-2", "--cpus-per-task=1", "--mem=0", SCRIPT, tmp_path / "in",
        tmp_path / "out", tmp_path / "report", "--weights", weights_dir, "--model", "tiny", "--precision", "fp32",
        TETRAD=str(program),
    ).strip()  # fmt: skip
    logs = [cluster.place / f"tetrad-{job}_{task}.log" for task in range(3)]
    _await_part(cluster, logs[1])
    cluster.call("scontrol", "requeue", f"{job}_1")
    _await_part(cluster, logs[2])
    cluster.call("scancel", "--batch", "--signal=TERM", f"{job}_2")
    cluster.wait(180)
    # Both were in the middle of their parts, and began once more.
    assert logs[2].read_text().count("stopped cleanly") == 1, cluster.logs()
    for log in logs[1:]:
        assert log.read_text().count(" of 30 subjects.") == 2
        assert "is there already, kept" in log.read_text()
    assert _contents(tmp_path / "out") == expected
    assert main(["merge-records", str(tmp_path / "report")]) == 0
    record = json.loads((tmp_path / "report" / "tetrad-run.json").read_text())
    assert [s["subject"] for s in record["subjects"]] == [f"s{i:02}" for i in range(30)]
    assert {s["status"] for s in record["subjects"]} == {"made", "kept"}
