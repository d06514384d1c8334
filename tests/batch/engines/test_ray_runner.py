"""Two workers on one processor, or two nodes on one machine: what several devices and machines do."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

from app.batch.engines.ray_runner import RayRunner
from app.batch.outcomes import exit_code_of
from app.batch.run import run
from app.core.config import ClusterOptions
from app.core.errors import DeviceError, UsageError, WeightsError
from app.core.signals import SignalGuard
from app.data.discovery import scan
from tests.batch.helpers import MOST_HELD, config_of, names_in, replace_file, write_copies

pytestmark = pytest.mark.cluster


def _contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.usefixtures("shared_ray")
class TestDevices:
    """Several devices of one machine, here `cpu,cpu`."""

    @pytest.fixture
    def few(self, tmp_path, write_subject):
        write_copies(write_subject, tmp_path / "in", [f"s{i}" for i in range(3)])
        return tmp_path

    def test_it_does_what_one_device_does(self, few, weights_dir):
        one = run(config_of(few, weights_dir, model="tiny", precision="fp32"))
        before = _contents(few / "out")
        replace_file(few / "in" / "s1" / "s1-t1n.nii.gz", b"damaged")
        two = run(config_of(few, weights_dir, model="tiny", precision="fp32", device="cpu,cpu", overwrite=True,
                          report_dir=few / "report", profile_file=few / "trace.json"))  # fmt: skip
        assert [o.subject for o in two.outcomes] == [o.subject for o in one.outcomes]
        assert [o.status for o in two.outcomes] == ["made"] * 3
        assert [o.outputs[0].model for o in two.outcomes] == ["tiny"] * 3
        after = _contents(few / "out")
        assert {n for n in before if before[n] != after[n]} == {"s1-t2f.nii.gz"}
        record = json.loads((few / "report" / "tetrad-run.json").read_text())
        assert len(record["subjects"]) == 3
        assert record["runtime"].startswith("2 x torch on cpu")
        events = json.loads((few / "trace.json").read_text())["traceEvents"]
        assert {e["args"]["subject"] for e in events} == {f"s{i}" for i in range(3)}

    def test_weights_that_are_damaged_are_known_at_once(self, few, weights_dir, tmp_path):
        shutil.copytree(weights_dir, tmp_path / "w")
        (tmp_path / "w" / "tiny.safetensors").write_bytes(b"other")
        with pytest.raises(WeightsError, match="does not match its checksum"):
            run(config_of(few, tmp_path / "w", model="tiny", device="cpu,cpu"))

    def test_stop_tells_of_all_that_was_written(self, few, weights_dir):
        replace_file(few / "in" / "s0" / "s0-t1n.nii.gz", b"damaged")
        summary = run(config_of(few, weights_dir, device="cpu,cpu", on_error="stop"))
        assert exit_code_of(summary) == 1
        made = sorted(Path(o.path).name for s in summary.outcomes for o in s.outputs)
        assert made == names_in(few / "out")
        assert "s0-t2f.nii.gz" not in made

    def test_two_exams_of_one_name_are_two_subjects(self, two_of_one, weights_dir):
        cases = scan(two_of_one / "in").cases
        (two_of_one / "out").mkdir()
        config = config_of(two_of_one, weights_dir, device="cpu,cpu")
        with RayRunner(config, ["cpu", "cpu"], cases, SignalGuard()) as runner:
            assert sorted((o.subject, o.status) for o in runner) == [("s", "made")] * 2

    def test_a_worker_that_dies_costs_no_subject(self, tmp_path, write_subject, weights_dir, caplog):
        # More than both workers may hold.
        count = 2 * MOST_HELD + 3
        write_copies(write_subject, tmp_path / "in", [f"s{i:02}" for i in range(count)])
        cases = scan(tmp_path / "in").cases
        (tmp_path / "out").mkdir()
        config = config_of(tmp_path, weights_dir, device="cpu,cpu", jobs=1)
        with RayRunner(config, ["cpu", "cpu"], cases, SignalGuard()) as runner:
            os.kill(runner._workers[0].description.process, signal.SIGKILL)
            outcomes = list(runner)
        assert sorted(o.subject for o in outcomes) == [f"s{i:02}" for i in range(count)]
        assert {o.status for o in outcomes} <= {"made", "kept"}
        assert len(names_in(tmp_path / "out")) == count
        assert "A worker died" in caplog.text

    def test_outputs_that_are_not_to_be_seen_here_fail_by_name(self, few, weights_dir, monkeypatch, caplog):
        monkeypatch.setattr("app.batch.engines.ray_runner.await_outputs", lambda *_: False)
        summary = run(config_of(few, weights_dir, device="cpu,cpu"))
        assert [o.status for o in summary.outcomes] == ["failed"] * 3
        assert "does not share" in caplog.text

    def test_devices_of_this_machine_are_none_of_a_cluster(self, few, weights_dir):
        options = ClusterOptions("ray", ray_address="auto")
        with pytest.raises(UsageError, match="is of this machine"):
            run(config_of(few, weights_dir, device="cpu,cpu", cluster=options))

    def test_a_cluster_without_room(self, few, weights_dir):
        with pytest.raises(DeviceError, match="has room for a worker of 64 cores"):
            run(config_of(few, weights_dir, cluster=ClusterOptions("ray", worker_cores=64)))


@pytest.mark.usefixtures("ray_package")
def test_a_node_and_a_worker_die_and_every_output_is_there_once(tmp_path, write_subject, weights_dir, monkeypatch):
    """Two nodes; while they work, one worker's process is killed, then the other node."""
    from ray.cluster_utils import Cluster

    subjects = [f"s{i:02}" for i in range(24)]
    write_copies(write_subject, tmp_path / "in", subjects)
    run(config_of(tmp_path, weights_dir, model="tiny", precision="fp32"))
    expected = _contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    settings = {"num_gpus": 0, "object_store_memory": 80 * 1024**2}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **settings})
    try:
        other = cluster.add_node(num_cpus=1, **settings)
        cluster.wait_for_nodes()
        killed: list[str] = []
        runners: list[RayRunner] = []
        monkeypatch.setattr(RayRunner, "__enter__", lambda self: runners.append(self) or self)

        def kill_both() -> None:
            _await_files(tmp_path / "out", 2)
            os.kill(runners[0]._workers[0].description.process, signal.SIGKILL)
            killed.append("worker")
            _await_files(tmp_path / "out", 8)
            cluster.remove_node(other, allow_graceful=False)
            killed.append("node")

        killer = threading.Thread(target=kill_both, daemon=True)
        killer.start()
        options = ClusterOptions("ray", ray_address=cluster.address, worker_cores=1)
        summary = run(config_of(tmp_path, weights_dir, model="tiny", precision="fp32", cluster=options, jobs=1,
                                report_dir=tmp_path / "report"))  # fmt: skip
        killer.join(60)
    finally:
        cluster.shutdown()
    assert killed == ["worker", "node"]
    assert exit_code_of(summary) == 0
    assert [o.subject for o in summary.outcomes] == subjects
    assert _contents(tmp_path / "out") == expected
    record = json.loads((tmp_path / "report" / "tetrad-run.json").read_text())
    assert [s["subject"] for s in record["subjects"]] == subjects


def _await_files(folder: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not folder.is_dir() or len(list(folder.glob("*.nii.gz"))) < count):
        time.sleep(0.02)
