from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app.batch import case_processor as worker
from app.batch import prefetch as flow
from app.batch import run as batch
from app.batch.case_processor import CaseProcessor
from app.batch.multi_device import MultiDeviceRunner
from app.batch.outcomes import Summary, exit_code_of
from app.batch.prefetch import WRITE_BEHIND
from app.batch.run import Outcome, run
from app.core.config import ModelOptions, RunConfig, RuntimeOptions
from app.core.errors import CaseError, DeviceError, NothingToDo, OutputError, UsageError, WeightsError
from app.data.discovery import scan
from app.inference.device import Machine, choose_devices
from app.inference.prepared import Prepared

#: Subjects that are in one process at a time with one reader: two read ahead, one computed, the rest to be written.
MOST_HELD = 1 + 1 + 1 + WRITE_BEHIND
CROWD = 2 * MOST_HELD + 1


@pytest.fixture
def three(tmp_path, write_subject):
    """Three subjects, the middle one with a damaged input."""
    for name in ("a", "b", "c"):
        write_subject(tmp_path / "in" / name)
    (tmp_path / "in" / "b" / "b-t1n.nii.gz").write_bytes(b"\x1f\x8b damaged")
    return tmp_path


@pytest.fixture
def two_of_one(tmp_path, write_subject):
    """One subject twice, each time without another sequence, as `dropout --each` leaves them."""
    for lacking in ("t1c", "t2f"):
        write_subject(tmp_path / "in" / lacking / "s", lacks=(lacking,))
    return tmp_path


def _config(place: Path, weights: Path, **options) -> RunConfig:
    runtime = RuntimeOptions(**{k: options.pop(k) for k in ("device", "precision") if k in options})
    chosen = {k: options.pop(k) for k in ("model", "flip_average") if k in options}
    model = ModelOptions(weights, **{"model": "regression", **chosen})
    return RunConfig(place / "in", place / "out", runtime, model, **options)


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(
    "statuses,options,code",
    [
        (["made", "kept", "complete"], {}, 0),
        (["made", "failed"], {}, 1),
        (["made"], {"stopped": True}, 1),
        (["made"], {"signal_number": signal.SIGTERM}, 143),
        (["failed"], {"signal_number": signal.SIGTERM}, 143),
        ([], {}, 0),
    ],
)
def test_exit_code(statuses, options, code):
    assert exit_code_of(Summary([Outcome("s", s) for s in statuses], (), **options)) == code


class TestPolicies:
    def test_fallback_makes_every_output_and_says_so(self, three, weights_dir, caplog):
        summary = run(_config(three, weights_dir, model="tiny"))
        assert exit_code_of(summary) == 0
        assert _names(three / "out") == ["a-t2f.nii.gz", "b-t2f.nii.gz", "c-t2f.nii.gz"]
        # A damaged file is no reason to do without the network: it works with any sequences that are left.
        assert [o.outputs[0]["model"] for o in summary.outcomes] == ["tiny"] * 3
        assert list(summary.outcomes[1].inputs) == ["t1c", "t2w"]
        assert "b-t1n.nii.gz" in caplog.text
        assert "t2f made from what is left (t1c, t2w), less surely than from three (--on-error fallback)" in caplog.text
        again = run(_config(three, weights_dir, model="tiny"))
        assert [o.status for o in again.outcomes] == ["kept"] * 3

    @pytest.mark.parametrize("on_error", ["fallback", "skip"])
    def test_a_network_that_overflows_is_no_success(self, three, weights_dir, monkeypatch, on_error, caplog):
        real = worker.predict

        def overflowing(*arguments):
            made = real(*arguments)
            return replace(made, volume=np.where(made.volume > 0, np.inf, made.volume).astype(np.float32))

        for name in "bc":
            shutil.rmtree(three / "in" / name)
        monkeypatch.setattr(worker, "predict", overflowing)
        summary = run(_config(three, weights_dir, model="tiny", on_error=on_error))
        assert "values that are not finite" in caplog.text
        assert [o.status for o in summary.outcomes] == ["made" if on_error == "fallback" else "failed"]
        if on_error == "fallback":
            assert summary.outcomes[0].outputs[0]["model"] == "regression"

    def test_weights_of_ones_own_need_no_regression_beside_them(self, three, weights_dir, tmp_path, monkeypatch):
        own = tmp_path / "own"
        shutil.copytree(weights_dir, own)
        form = json.loads((own / "manifest.json").read_text())
        del form["models"]["regression"]
        (own / "manifest.json").write_text(json.dumps(form | {"default": "tiny", "fallback": None}))

        def never(*_):
            raise CaseError("too large")

        monkeypatch.setattr(worker, "predict", never)
        summary = run(_config(three, own, model="tiny"))
        assert exit_code_of(summary) == 0
        assert {o.outputs[0]["model"] for o in summary.outcomes} == {"regression"}

    def test_skip_does_the_others(self, three, weights_dir):
        summary = run(_config(three, weights_dir, on_error="skip"))
        assert exit_code_of(summary) == 1
        assert _names(three / "out") == ["a-t2f.nii.gz", "c-t2f.nii.gz"]

    def test_stop_ends_at_once(self, three, weights_dir):
        summary = run(_config(three, weights_dir, on_error="stop"))
        assert exit_code_of(summary) == 1
        assert _names(three / "out") == ["a-t2f.nii.gz"]

    @pytest.mark.parametrize("stage", ["predict", "finish"])
    @pytest.mark.parametrize("error", [CaseError("too large"), RuntimeError("a fault of the driver")])
    def test_a_network_that_breaks_is_replaced(self, three, weights_dir, monkeypatch, error, stage, caplog):
        real = getattr(worker, stage)

        def sometimes(*arguments):
            prepared = next(a for a in arguments if isinstance(a, Prepared))
            if "/a/" in str(prepared.grids["t1n"].path):
                raise error
            return real(*arguments)

        shutil.rmtree(three / "in" / "b")
        monkeypatch.setattr(worker, stage, sometimes)
        summary = run(_config(three, weights_dir, model="tiny"))
        assert [o.outputs[0]["model"] for o in summary.outcomes] == ["regression", "tiny"]
        assert str(error) in caplog.text
        # The stand-in's output is no reason to pass over the subject when the network works again.
        monkeypatch.setattr(worker, stage, real)
        again = run(_config(three, weights_dir, model="tiny"))
        assert [(o.status, o.outputs[0].get("model")) for o in again.outcomes] == [("made", "tiny"), ("kept", None)]
        monkeypatch.setattr(worker, stage, sometimes)
        shutil.rmtree(three / "out")
        strict = run(_config(three, weights_dir, model="tiny", on_error="skip"))
        assert [o.status for o in strict.outcomes] == ["failed", "made"]

    def test_damage_that_only_decoding_shows(self, three, weights_dir):
        source = three / "in" / "c" / "c-t1c.nii.gz"
        content = bytearray(source.read_bytes())
        content[len(content) // 2] ^= 0xFF
        source.write_bytes(content)
        shutil.rmtree(three / "in" / "b")
        summary = run(_config(three, weights_dir))
        assert [o.status for o in summary.outcomes] == ["made", "made"]
        assert "t1c" not in summary.outcomes[1].inputs
        assert exit_code_of(run(_config(three, weights_dir, on_error="skip", overwrite=True))) == 1

    def test_all_missing_are_made_when_asked(self, tmp_path, write_subject, weights_dir):
        write_subject(tmp_path / "in" / "a", lacks=("t1c", "t2f"))
        run(_config(tmp_path, weights_dir, complete_all=True, on_error="skip"))
        assert _names(tmp_path / "out") == ["a-t1c.nii.gz", "a-t2f.nii.gz"]

    def test_complete_subjects_are_passed_over(self, tmp_path, write_subject, weights_dir):
        write_subject(tmp_path / "in" / "a", lacks=())
        write_subject(tmp_path / "in" / "b")
        summary = run(_config(tmp_path, weights_dir))
        assert [o.status for o in summary.outcomes] == ["complete", "made"]


class TestResume:
    def test_a_good_output_is_kept(self, three, weights_dir):
        run(_config(three, weights_dir))
        before = {p: p.stat().st_mtime_ns for p in (three / "out").iterdir()}
        summary = run(_config(three, weights_dir))
        assert {o.status for o in summary.outcomes} == {"kept"}
        assert {p: p.stat().st_mtime_ns for p in (three / "out").iterdir()} == before

    @pytest.mark.parametrize("fault", ["truncated", "other grid", "empty"])
    def test_a_bad_one_is_made_again(self, three, weights_dir, fault):
        run(_config(three, weights_dir))
        path = three / "out" / "a-t2f.nii.gz"
        good = path.read_bytes()
        image = nib.load(path)
        if fault == "truncated":
            path.write_bytes(good[: len(good) // 2])
        elif fault == "other grid":
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[1:], image.affine), path)
        else:
            nib.save(nib.Nifti1Image(np.zeros(image.shape, np.int16), image.affine), path)
        summary = run(_config(three, weights_dir))
        assert [o.status for o in summary.outcomes] == ["made", "kept", "kept"]
        assert path.read_bytes() == good

    def test_what_a_damaged_input_made_is_made_again_when_it_is_repaired(self, three, weights_dir, write_subject):
        run(_config(three, weights_dir))
        before = (three / "out" / "b-t2f.nii.gz").read_bytes()
        write_subject(three / "in" / "b")
        summary = run(_config(three, weights_dir))
        assert [o.status for o in summary.outcomes] == ["kept", "made", "kept"]
        assert (three / "out" / "b-t2f.nii.gz").read_bytes() != before

    def test_an_output_says_that_it_is_synthetic_and_what_made_it(self, three, weights_dir):
        run(_config(three, weights_dir, model="tiny"))
        text = nib.load(three / "out" / "a-t2f.nii.gz").header["descrip"].item().decode()
        assert text.startswith("synthetic t2f from 3, tetrad ")
        assert "tiny" in text

    def test_what_was_made_in_another_way_is_kept_and_said(self, tmp_path, write_subject, weights_dir):
        write_subject(tmp_path / "in" / "a")
        (made,) = run(_config(tmp_path, weights_dir, model="tiny")).outcomes
        assert made.outputs[0]["joined"] == "mean"
        (same,) = run(_config(tmp_path, weights_dir, model="tiny")).outcomes
        assert (same.status, same.warnings) == ("kept", made.warnings)
        for options in ({"model": "tiny", "flip_average": True}, {"model": "tiny", "fusion": "median"}, {}):
            (kept,) = run(_config(tmp_path, weights_dir, **options)).outcomes
            assert kept.status == "kept"
            assert "is kept as it is" in kept.warnings[-1]
            assert "--overwrite" in kept.warnings[-1]
        (again,) = run(_config(tmp_path, weights_dir, model="tiny", flip_average=True, overwrite=True)).outcomes
        assert again.outputs[0]["joined"] == "mean+flip"
        text = nib.load(tmp_path / "out" / "a-t2f.nii.gz").header["descrip"].item().decode()
        assert text.endswith(" mean+flip")

    def test_overwrite_makes_all_again(self, three, weights_dir):
        run(_config(three, weights_dir))
        assert {o.status for o in run(_config(three, weights_dir, overwrite=True)).outcomes} == {"made"}

    def test_files_of_others_in_the_output_stay(self, three, weights_dir):
        (three / "out").mkdir()
        (three / "out" / "notes.txt").write_text("mine")
        run(_config(three, weights_dir))
        assert (three / "out" / "notes.txt").read_text() == "mine"


class TestParts:
    def test_parts_cover_all_once(self, tmp_path, write_subject, weights_dir):
        for name in "abcde":
            write_subject(tmp_path / "in" / name)
        done = []
        for part in range(3):
            summary = run(_config(tmp_path, weights_dir, part_id=part, num_parts=3))
            done += [o.subject for o in summary.outcomes]
        assert sorted(done) == list("abcde")

    def test_a_part_without_subjects_is_no_failure(self, three, weights_dir):
        assert exit_code_of(run(_config(three, weights_dir, part_id=7, num_parts=8))) == 0


class TestFolders:
    def test_input_as_output(self, three, weights_dir):
        with pytest.raises(UsageError, match="is the input"):
            run(RunConfig(three / "in", three / "in", model=ModelOptions(weights_dir)))

    def test_report_in_the_output(self, three, weights_dir):
        with pytest.raises(UsageError, match="report folder"):
            run(_config(three, weights_dir, report_dir=three / "out" / "report"))

    @pytest.mark.parametrize("complete", [True, False])
    def test_nothing_to_do(self, tmp_path, write_subject, weights_dir, complete):
        (tmp_path / "in").mkdir()
        if complete:
            write_subject(tmp_path / "in" / "a", lacks=())
        with pytest.raises(NothingToDo):
            run(_config(tmp_path, weights_dir))


class TestRecord:
    def test_what_it_says(self, three, weights_dir):
        run(_config(three, weights_dir, model="tiny", report_dir=three / "report"))
        (file,) = (three / "report").glob("*.json")
        record = json.loads(file.read_text())
        assert record["exit_code"] == 0
        assert record["model"]["name"] == "tiny"
        assert "cpu" in record["runtime"]
        a, b, _ = record["subjects"]
        assert set(a["inputs"]) == {"t1c", "t1n", "t2w"}
        assert a["lacked"] == ["t2f"]
        assert len(a["outputs"][0]["sha256"]) == len(a["outputs"][0]["weights_sha256"]) == 64
        assert any("fallback" in w for w in b["warnings"])

    @pytest.mark.parametrize("name", ["$\\frac$", "<b>&", "Müller 1", b"\xff".decode("utf-8", "surrogateescape")])
    def test_odd_names_do_not_spoil_the_report(self, tmp_path, write_subject, weights_dir, name):
        write_subject(tmp_path / "in" / name)
        summary = run(_config(tmp_path, weights_dir, report_dir=tmp_path / "report"))
        assert exit_code_of(summary) == 0
        assert (tmp_path / "report" / "tetrad-run.html").read_text().count("data:image/jpeg") == 1

    def test_a_report_that_cannot_be_written_is_a_failure(self, three, weights_dir, monkeypatch):
        def full(*_args):
            raise OutputError("no space")

        monkeypatch.setattr(batch, "write_run_report", full)
        assert exit_code_of(run(_config(three, weights_dir, report_dir=three / "report"))) == 1

    def test_a_second_run_keeps_what_the_first_said(self, three, weights_dir):
        for _ in range(2):
            run(_config(three, weights_dir, model="tiny", report_dir=three / "report"))
        record = json.loads((three / "report" / "tetrad-run.json").read_text())
        assert [s["status"] for s in record["subjects"]] == ["kept"] * 3
        a, b, _ = record["subjects"]
        assert set(a["inputs"]) == {"t1c", "t1n", "t2w"}
        assert a["outputs"][0]["model"] == "tiny"
        assert any("made from what is left" in w for w in b["warnings"])
        assert (three / "report" / "tetrad-run.html").read_text().count("data:image/jpeg") == 3
        # Of an output that another run made since, it knows no more.
        run(_config(three, weights_dir, model="tiny", flip_average=True, overwrite=True))
        run(_config(three, weights_dir, model="tiny", report_dir=three / "report"))
        record = json.loads((three / "report" / "tetrad-run.json").read_text())
        assert "model" not in record["subjects"][0]["outputs"][0]

    def test_exams_of_one_name_have_histories_of_their_own(self, two_of_one, weights_dir):
        for _ in range(2):
            run(_config(two_of_one, weights_dir, model="tiny", report_dir=two_of_one / "report"))
        record = json.loads((two_of_one / "report" / "tetrad-run.json").read_text())
        told = {o["target"]: (s["status"], set(s["inputs"])) for s in record["subjects"] for o in s["outputs"]}
        assert told == {"t1c": ("kept", {"t1n", "t2f", "t2w"}), "t2f": ("kept", {"t1c", "t1n", "t2w"})}

    def test_exams_of_one_name_have_times_of_their_own(self, two_of_one, weights_dir):
        for _ in range(2):
            summary = run(_config(two_of_one, weights_dir, profile_file=two_of_one / "trace.json"))
            events = json.loads((two_of_one / "trace.json").read_text())["traceEvents"]
            for stage in ("read", "network", "write"):
                spans = sorted(e["dur"] / 1e6 for e in events if e["name"] == stage)
                assert sorted(o.stages[stage] for o in summary.outcomes if stage in o.stages) == pytest.approx(
                    spans, abs=1e-3
                )
            # One that is kept is soon ready, and takes nothing of the other's.
            (two_of_one / "out" / "s-t1c.nii.gz").unlink()

    def test_a_record_that_is_no_record_is_replaced(self, three, weights_dir):
        for content in ("[]", "{", '{"subjects": [3]}', '{"subjects": [{"subject": "a", "outputs": 3}]}'):
            (three / "report").mkdir(exist_ok=True)
            (three / "report" / "tetrad-run.json").write_text(content)
            run(_config(three, weights_dir, report_dir=three / "report"))
            assert len(json.loads((three / "report" / "tetrad-run.json").read_text())["subjects"]) == 3

    def test_a_place_for_the_trace_is_made_before_the_work(self, three, weights_dir):
        run(_config(three, weights_dir, profile_file=three / "new" / "trace.json"))
        assert (three / "new" / "trace.json").stat().st_size > 0

    def test_parts_do_not_overwrite_each_others(self, three, weights_dir):
        for part in (0, 1):
            run(_config(three, weights_dir, report_dir=three / "report", part_id=part, num_parts=2))
        assert len(list((three / "report").glob("*.json"))) == 2


def test_a_device_that_cannot_take_the_model_is_told_in_a_sentence(three, weights_dir, monkeypatch):
    def full(*_args, **_options):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nmore of it")

    monkeypatch.setattr(worker, "Synthesizer", full)
    with pytest.raises(DeviceError, match=r"busy or unavailable\); free it, or use --device cpu"):
        run(_config(three, weights_dir))


class TestOverlap:
    @pytest.fixture
    def many(self, tmp_path, write_subject):
        for number in range(6):
            write_subject(tmp_path / "in" / f"s{number}")
        return tmp_path

    def test_the_next_is_read_and_the_last_written_while_the_network_runs(self, many, weights_dir, monkeypatch):
        read, written = ({f"s{i}": threading.Event() for i in range(6)} for _ in range(2))
        original = {name: getattr(CaseProcessor, name) for name in ("read", "compute", "write")}

        def reading(self, case):
            job = original["read"](self, case)
            read[case.subject].set()
            return job

        def computing(self, job):
            number = int(job.case.subject[1:])
            if number < 5:
                assert read[f"s{number + 1}"].wait(30), "the next subject is not read meanwhile"
            if number > 0:
                assert written[f"s{number - 1}"].wait(30), "the last subject is not written meanwhile"
            original["compute"](self, job)

        def writing(self, job):
            outcome = original["write"](self, job)
            written[job.case.subject].set()
            return outcome

        for name, replacement in (("read", reading), ("compute", computing), ("write", writing)):
            monkeypatch.setattr(CaseProcessor, name, replacement)
        summary = run(_config(many, weights_dir, jobs=1))
        assert [(o.subject, o.status) for o in summary.outcomes] == [(f"s{i}", "made") for i in range(6)]

    def test_few_subjects_are_held_at_once(self, many, weights_dir, monkeypatch):
        held, most, lock = set(), [0], threading.Lock()
        read, write = CaseProcessor.read, CaseProcessor.write

        def reading(self, case):
            with lock:
                held.add(case.subject)
                most[0] = max(most[0], len(held))
            return read(self, case)

        def writing(self, job):
            time.sleep(0.3)
            with lock:
                held.discard(job.case.subject)
            return write(self, job)

        monkeypatch.setattr(CaseProcessor, "read", reading)
        monkeypatch.setattr(CaseProcessor, "write", writing)
        run(_config(many, weights_dir, jobs=1))
        assert most[0] <= MOST_HELD

    def test_stop_leaves_nothing_of_later_subjects(self, many, weights_dir, monkeypatch):
        monkeypatch.setattr(worker, "finish", lambda *_: (_ for _ in ()).throw(CaseError("no")))
        summary = run(_config(many, weights_dir, on_error="stop"))
        assert [o.subject for o in summary.outcomes] == ["s0"]
        assert _names(many / "out") == []

    def test_a_trace_tells_where_time_went(self, many, weights_dir):
        summary = run(_config(many, weights_dir, profile_file=many / "trace.json", report_dir=many / "report"))
        events = json.loads((many / "trace.json").read_text())["traceEvents"]
        assert {(e["args"]["subject"], e["name"]) for e in events} == {
            (f"s{i}", stage) for i in range(6) for stage in ("read", "network", "write")
        }
        assert all(e["ph"] == "X" and e["dur"] >= 0 for e in events)
        threads = {stage: {e["tid"] for e in events if e["name"] == stage} for stage in ("read", "network", "write")}
        assert len(threads["network"]) == 1
        assert not threads["network"] & (threads["read"] | threads["write"])
        for outcome in summary.outcomes:
            assert set(outcome.stages) == {"read", "network", "write"}
            assert outcome.seconds == pytest.approx(sum(outcome.stages.values()), abs=1e-3)


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small file system, which needs root")
def test_a_full_disk_leaves_no_half_file(three, weights_dir, capsys):
    output = three / "out"
    output.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", output], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        shutil.rmtree(three / "in" / "b")
        summary = run(_config(three, weights_dir))
        assert exit_code_of(summary) == 1
        assert "No space left" in (summary.outcomes[0].error or "")
        assert _names(output) == []
    finally:
        subprocess.run(["umount", output], check=True)


class TestFleet:
    """Several devices, here two processes on one processor."""

    @pytest.fixture
    def five(self, tmp_path, write_subject):
        for number in range(5):
            write_subject(tmp_path / "in" / f"s{number}")
        return tmp_path

    @pytest.fixture
    def crowd(self, tmp_path, write_subject):
        # More than both processes may hold, however much sooner than the other one is ready.
        for number in range(CROWD):
            write_subject(tmp_path / "in" / f"s{number}")
        return tmp_path

    @pytest.fixture
    def release(self, monkeypatch):
        """Nobody gets a subject before its number is released: who is ready first would do them all."""
        asking, note = [], MultiDeviceRunner._note

        def hold(self, number, kind, content):
            if kind == "want":
                asking.append(number)
            else:
                note(self, number, kind, content)

        def let_go(fleet, number):
            monkeypatch.setattr(MultiDeviceRunner, "_note", note)
            if number in asking:
                fleet._note(number, "want", None)

        monkeypatch.setattr(MultiDeviceRunner, "_note", hold)
        return let_go

    @staticmethod
    def _voxels(folder: Path) -> dict[str, np.ndarray]:
        return {p.name: np.asarray(nib.load(p).dataobj).astype(int) for p in folder.iterdir()}

    def test_it_does_what_one_device_does(self, five, weights_dir):
        one = run(_config(five, weights_dir, model="tiny", precision="fp32"))
        before = self._voxels(five / "out")
        (five / "in" / "s3" / "s3-t1n.nii.gz").write_bytes(b"damaged")
        two = run(_config(five, weights_dir, model="tiny", precision="fp32", device="cpu,cpu", overwrite=True,
                          report_dir=five / "report", profile_file=five / "trace.json"))  # fmt: skip
        assert [o.subject for o in two.outcomes] == [o.subject for o in one.outcomes]
        assert [o.status for o in two.outcomes] == ["made"] * 5
        assert [o.outputs[0]["model"] for o in two.outcomes] == ["tiny"] * 5
        after = self._voxels(five / "out")
        # Sums of other threads round otherwise: by one unit of the stored integers at most.
        assert {n for n in before if np.abs(before[n] - after[n]).max() > 1} == {"s3-t2f.nii.gz"}
        record = json.loads((five / "report" / "tetrad-run.json").read_text())
        assert len(record["subjects"]) == 5
        assert record["runtime"].count("torch on cpu") == 2
        events = json.loads((five / "trace.json").read_text())["traceEvents"]
        assert {e["args"]["subject"] for e in events} == {f"s{i}" for i in range(5)}

    def test_weights_that_are_damaged_are_known_at_once(self, five, weights_dir, tmp_path):
        shutil.copytree(weights_dir, tmp_path / "w")
        (tmp_path / "w" / "tiny.safetensors").write_bytes(b"other")
        with pytest.raises(WeightsError, match="does not match its checksum"):
            run(_config(five, tmp_path / "w", model="tiny", device="cpu,cpu"))

    def test_a_process_that_dies_fails_what_it_had_begun_only(self, crowd, weights_dir, caplog):
        cases = scan(crowd / "in").cases
        (crowd / "out").mkdir()
        with MultiDeviceRunner(_config(crowd, weights_dir, model="tiny", jobs=1), ["cpu", "cpu"], cases) as fleet:
            fleet._crew[0].kill()
            outcomes = {o.subject: o for o in fleet}
        assert set(outcomes) == {f"s{i}" for i in range(CROWD)}
        failed = [o for o in outcomes.values() if o.status == "failed"]
        assert len(failed) <= MOST_HELD
        assert len(failed) + sum(o.status == "made" for o in outcomes.values()) == CROWD
        assert all("process died" in (o.error or "") for o in failed)
        assert "ended with code -9" in caplog.text

    def test_a_process_that_dies_in_the_middle_of_a_message_holds_nobody_up(self, crowd, weights_dir):
        cases = scan(crowd / "in").cases
        (crowd / "out").mkdir()
        with MultiDeviceRunner(_config(crowd, weights_dir, jobs=1), ["cpu", "cpu"], cases) as fleet:
            fleet._crew[0].kill()
            fleet._lines[0].close()
            fleet._lines[0], theirs = multiprocessing.Pipe()
            # The length of a message, and less than that of it.
            os.write(theirs.fileno(), struct.pack("!i", 100) + b"torn")
            theirs.close()
            outcomes = list(fleet)
        assert {o.subject for o in outcomes} == {f"s{i}" for i in range(CROWD)}
        # Those that it had been given already are lost with it.
        assert sum(o.status == "made" for o in outcomes) >= CROWD - MOST_HELD

    def test_who_asks_and_dies_leaves_the_next_subject_to_the_others(self, five, weights_dir, release):
        cases = scan(five / "in").cases
        (five / "out").mkdir()
        with MultiDeviceRunner(_config(five, weights_dir, jobs=1), ["cpu", "cpu"], cases) as fleet:
            fleet._crew[0].kill()
            fleet._lines[0].close()
            fleet._lines[0], theirs = multiprocessing.Pipe()
            theirs.send(("want", None))
            theirs.close()
            release(fleet, 1)
            outcomes = list(fleet)
        assert {o.subject: o.status for o in outcomes} == {f"s{i}": "made" for i in range(5)}

    def test_of_two_exams_of_one_name_the_one_that_is_lost_is_told(self, two_of_one, weights_dir, release):
        cases = scan(two_of_one / "in").cases
        (two_of_one / "out").mkdir()
        with MultiDeviceRunner(_config(two_of_one, weights_dir, jobs=1), ["cpu", "cpu"], cases) as fleet:
            # The first one had it when it died.
            fleet._waiting.pop()
            fleet._crew[0].kill()
            release(fleet, 1)
            outcomes = list(fleet)
        assert sorted((o.subject, o.status) for o in outcomes) == [("s", "failed"), ("s", "made")]

    def test_stop_tells_of_all_that_was_written(self, five, weights_dir):
        (five / "in" / "s0" / "s0-t1n.nii.gz").write_bytes(b"damaged")
        summary = run(_config(five, weights_dir, model="tiny", device="cpu,cpu", on_error="stop"))
        assert exit_code_of(summary) == 1
        made = sorted(Path(o["path"]).name for s in summary.outcomes for o in s.outputs)
        assert made == _names(five / "out")
        assert "s0-t2f.nii.gz" not in made

    def test_devices_that_are_not_there(self, five, weights_dir, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        for device in ("all", "cuda:0,cuda:1", "cpu,cuda:7"):
            with pytest.raises(DeviceError):
                run(_config(five, weights_dir, model="tiny", device=device))
        with pytest.raises(UsageError):
            run(_config(five, weights_dir, model="tiny", device="cpu,gpu"))

    def test_all_are_the_gpus(self):
        machine = Machine(gpus=("A", "B"))
        assert choose_devices("all", machine) == ["cuda:0", "cuda:1"]
        assert choose_devices("cuda:1,cpu", machine) == ["cuda:1", "cpu"]


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_sigterm_ends_cleanly_and_the_next_run_does_the_rest(tmp_path, write_subject, weights_dir, device):
    for number in range(40):
        write_subject(tmp_path / "in" / f"s{number:02}")
    command = [sys.executable, "-m", "app", "--input", tmp_path / "in", "--output", tmp_path / "out",
               "--weights", weights_dir, "--model", "tiny", "--precision", "fp32", "--device", device,
               "--report-dir", tmp_path / "report"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list((tmp_path / "out").glob("*")):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 143, messages
    assert "Traceback" not in messages
    done = _names(tmp_path / "out")
    assert 0 < len(done) < 40
    for name in done:
        assert np.asarray(nib.load(tmp_path / "out" / name).dataobj).max() > 0
    record = json.loads(next((tmp_path / "report").glob("*.json")).read_text())
    assert record["exit_code"] == 143
    # What was on its way to the disk is written and told.
    assert [Path(o["path"]).name for s in record["subjects"] for o in s["outputs"]] == done
    summary = run(_config(tmp_path, weights_dir))
    assert summary.count("kept") == len(done)
    assert summary.count("made") == 40 - len(done)


class TestJobs:
    def test_a_slow_subject_holds_back_nobody(self, tmp_path, write_subject, weights_dir, monkeypatch):
        for name in ("a", "b", "c", "d"):
            write_subject(tmp_path / "in" / name)
        (tmp_path / "out").mkdir()
        others, original = threading.Semaphore(0), CaseProcessor._read

        def read(self, job):
            if job.case.subject == "a":
                # The network drive hangs until all the others are finished.
                for _ in range(3):
                    assert others.acquire(timeout=60)
            original(self, job)

        monkeypatch.setattr(CaseProcessor, "_read", read)
        outcomes = []
        with flow.PrefetchingRunner(
            CaseProcessor(_config(tmp_path, weights_dir)), scan(tmp_path / "in").cases
        ) as flowing:
            for outcome in flowing:
                outcomes.append(outcome)
                others.release()
        assert [(o.subject, o.status) for o in outcomes] == [(n, "made") for n in "bcda"]
        assert _names(tmp_path / "out") == [f"{n}-t2f.nii.gz" for n in "abcd"]

    @pytest.mark.parametrize(
        "device,cores,asked,threads",
        [("cpu", 2, None, 2), ("cpu", 64, None, 4), ("cuda:0", 16, None, 8), ("cuda:0", 64, None, 8),
         ("cuda:0", 2, None, 2), ("cpu", 2, 3, 3), ("cpu", 2, 1, 1)],
    )  # fmt: skip
    def test_threads_that_read(self, tmp_path, weights_dir, device, cores, asked, threads):
        (tmp_path / "in").mkdir()
        made = CaseProcessor(_config(tmp_path, weights_dir, model="tiny", device="cpu", jobs=asked))
        runtime = replace(made.synthesizer.model.runtime, device=device)
        made.synthesizer.model = replace(made.synthesizer.model, runtime=runtime)
        assert flow.choose_readers(made, cores) == threads
        made.config = replace(made.config, on_error="stop")
        assert flow.choose_readers(made, cores) == (asked or 1)
