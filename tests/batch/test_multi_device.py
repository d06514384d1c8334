from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app.batch import multi_device
from app.batch.multi_device import MultiDeviceRunner
from app.batch.outcomes import exit_code_of
from app.batch.run import run
from app.core.errors import WeightsError
from app.data.discovery import scan
from tests.batch.helpers import MOST_HELD, config_of, names_in, replace_file, write_copies

CROWD = 2 * MOST_HELD + 1


@pytest.fixture
def warm(monkeypatch):
    """Processes that have torch already: three seconds less each."""
    multiprocessing.set_forkserver_preload(["app.batch.multi_device", "torch"])
    monkeypatch.setattr(multi_device, "START_METHOD", "forkserver")


class TestProcesses:
    """Several devices, here two processes on one processor."""

    @pytest.fixture
    def five(self, tmp_path, write_subject):
        write_copies(write_subject, tmp_path / "in", [f"s{i}" for i in range(5)])
        return tmp_path

    @pytest.fixture
    def few(self, tmp_path, write_subject):
        write_copies(write_subject, tmp_path / "in", [f"s{i}" for i in range(3)])
        return tmp_path

    @pytest.fixture
    def crowd(self, tmp_path, write_subject):
        # More than both processes may hold, however much sooner than the other one is ready.
        write_copies(write_subject, tmp_path / "in", [f"s{i}" for i in range(CROWD)])
        return tmp_path

    @pytest.fixture
    def release(self, monkeypatch):
        """Nobody gets a subject before its number is released: who is ready first would do them all."""
        asking, handle = [], MultiDeviceRunner._handle

        def hold(self, number, kind, content):
            if kind == "want":
                asking.append(number)
            else:
                handle(self, number, kind, content)

        def let_go(runner, number):
            monkeypatch.setattr(MultiDeviceRunner, "_handle", handle)
            if number in asking:
                runner._handle(number, "want", None)

        monkeypatch.setattr(MultiDeviceRunner, "_handle", hold)
        return let_go

    @staticmethod
    def _voxels(folder: Path) -> dict[str, np.ndarray]:
        return {p.name: np.asarray(nib.load(p).dataobj).astype(int) for p in folder.iterdir()}

    def test_it_does_what_one_device_does(self, few, weights_dir):
        one = run(config_of(few, weights_dir, model="tiny", precision="fp32"))
        before = self._voxels(few / "out")
        replace_file(few / "in" / "s1" / "s1-t1n.nii.gz", b"damaged")
        two = run(config_of(few, weights_dir, model="tiny", precision="fp32", device="cpu,cpu", overwrite=True,
                          report_dir=few / "report", profile_file=few / "trace.json"))  # fmt: skip
        assert [o.subject for o in two.outcomes] == [o.subject for o in one.outcomes]
        assert [o.status for o in two.outcomes] == ["made"] * 3
        assert [o.outputs[0].model for o in two.outcomes] == ["tiny"] * 3
        after = self._voxels(few / "out")
        # Sums of other threads round otherwise: by one unit of the stored integers at most.
        assert {n for n in before if np.abs(before[n] - after[n]).max() > 1} == {"s1-t2f.nii.gz"}
        record = json.loads((few / "report" / "tetrad-run.json").read_text())
        assert len(record["subjects"]) == 3
        assert record["runtime"].count("torch on cpu") == 2
        events = json.loads((few / "trace.json").read_text())["traceEvents"]
        assert {e["args"]["subject"] for e in events} == {f"s{i}" for i in range(3)}

    @pytest.mark.usefixtures("warm")
    def test_weights_that_are_damaged_are_known_at_once(self, five, weights_dir, tmp_path):
        shutil.copytree(weights_dir, tmp_path / "w")
        (tmp_path / "w" / "tiny.safetensors").write_bytes(b"other")
        with pytest.raises(WeightsError, match="does not match its checksum"):
            run(config_of(five, tmp_path / "w", model="tiny", device="cpu,cpu"))

    @pytest.mark.usefixtures("warm")
    def test_a_process_that_dies_fails_what_it_had_begun_only(self, crowd, weights_dir, caplog):
        cases = scan(crowd / "in").cases
        (crowd / "out").mkdir()
        with MultiDeviceRunner(config_of(crowd, weights_dir, jobs=1), ["cpu", "cpu"], cases) as runner:
            runner._processes[0].kill()
            outcomes = {o.subject: o for o in runner}
        assert set(outcomes) == {f"s{i}" for i in range(CROWD)}
        failed = [o for o in outcomes.values() if o.status == "failed"]
        assert len(failed) <= MOST_HELD
        assert len(failed) + sum(o.status == "made" for o in outcomes.values()) == CROWD
        assert all("process died" in (o.error or "") for o in failed)
        assert "ended with code -9" in caplog.text

    @pytest.mark.usefixtures("warm")
    def test_a_process_that_dies_in_the_middle_of_a_message_holds_nobody_up(self, crowd, weights_dir):
        cases = scan(crowd / "in").cases
        (crowd / "out").mkdir()
        with MultiDeviceRunner(config_of(crowd, weights_dir, jobs=1), ["cpu", "cpu"], cases) as runner:
            runner._processes[0].kill()
            runner._connections[0].close()
            runner._connections[0], theirs = multiprocessing.Pipe()
            # The length of a message, and less than that of it.
            os.write(theirs.fileno(), struct.pack("!i", 100) + b"torn")
            theirs.close()
            outcomes = list(runner)
        assert {o.subject for o in outcomes} == {f"s{i}" for i in range(CROWD)}
        # Those that it had been given already are lost with it.
        assert sum(o.status == "made" for o in outcomes) >= CROWD - MOST_HELD

    @pytest.mark.usefixtures("warm")
    def test_who_asks_and_dies_leaves_the_next_subject_to_the_others(self, five, weights_dir, release):
        cases = scan(five / "in").cases
        (five / "out").mkdir()
        with MultiDeviceRunner(config_of(five, weights_dir, jobs=1), ["cpu", "cpu"], cases) as runner:
            runner._processes[0].kill()
            runner._connections[0].close()
            runner._connections[0], theirs = multiprocessing.Pipe()
            theirs.send(("want", None))
            theirs.close()
            release(runner, 1)
            outcomes = list(runner)
        assert {o.subject: o.status for o in outcomes} == {f"s{i}": "made" for i in range(5)}

    @pytest.mark.usefixtures("warm")
    def test_of_two_exams_of_one_name_the_one_that_is_lost_is_told(self, two_of_one, weights_dir, release):
        cases = scan(two_of_one / "in").cases
        (two_of_one / "out").mkdir()
        with MultiDeviceRunner(config_of(two_of_one, weights_dir, jobs=1), ["cpu", "cpu"], cases) as runner:
            # The first one had it when it died.
            runner._waiting.pop()
            runner._processes[0].kill()
            # Until it is gone, it could be given the other one.
            runner._processes[0].join()
            release(runner, 1)
            outcomes = list(runner)
        assert sorted((o.subject, o.status) for o in outcomes) == [("s", "failed"), ("s", "made")]

    @pytest.mark.usefixtures("warm")
    def test_stop_tells_of_all_that_was_written(self, few, weights_dir):
        replace_file(few / "in" / "s0" / "s0-t1n.nii.gz", b"damaged")
        summary = run(config_of(few, weights_dir, model="tiny", device="cpu,cpu", on_error="stop"))
        assert exit_code_of(summary) == 1
        made = sorted(Path(o.path).name for s in summary.outcomes for o in s.outputs)
        assert made == names_in(few / "out")
        assert "s0-t2f.nii.gz" not in made
