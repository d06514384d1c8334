from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app.batch import run as run_module
from app.batch.outcomes import exit_code_of
from app.batch.run import run
from app.cli import main
from app.core.config import ModelOptions, RunConfig
from app.core.errors import NothingToDo, UsageError
from tests.batch.helpers import config_of, names_in, write_copies


class TestPolicies:
    def test_skip_does_the_others(self, three, weights_dir):
        summary = run(config_of(three, weights_dir, on_error="skip"))
        assert exit_code_of(summary) == 1
        assert names_in(three / "out") == ["a-t2f.nii.gz", "c-t2f.nii.gz"]

    def test_stop_ends_at_once(self, three, weights_dir):
        summary = run(config_of(three, weights_dir, on_error="stop"))
        assert exit_code_of(summary) == 1
        assert names_in(three / "out") == ["a-t2f.nii.gz"]

    def test_complete_subjects_are_passed_over(self, tmp_path, write_subject, weights_dir):
        write_subject(tmp_path / "in" / "a", lacks=())
        write_subject(tmp_path / "in" / "b")
        summary = run(config_of(tmp_path, weights_dir))
        assert [o.status for o in summary.outcomes] == ["complete", "made"]


class TestParts:
    def test_parts_cover_all_once(self, tmp_path, write_subject, weights_dir):
        write_copies(write_subject, tmp_path / "in", "abcde")
        done = []
        for part in range(3):
            summary = run(config_of(tmp_path, weights_dir, part_id=part, num_parts=3))
            done += [o.subject for o in summary.outcomes]
        assert sorted(done) == list("abcde")

    def test_a_part_without_subjects_is_no_failure_but_said(self, three, weights_dir, caplog):
        assert exit_code_of(run(config_of(three, weights_dir, part_id=7, num_parts=8))) == 0
        assert [r.message for r in caplog.records if r.levelname == "WARNING"] == ["Part 7 of 8: 0 of 3 subjects."]


class TestFolders:
    def test_input_as_output(self, three, weights_dir):
        with pytest.raises(UsageError, match="is the input"):
            run(RunConfig(three / "in", three / "in", model=ModelOptions(weights_dir)))

    def test_report_in_the_output(self, three, weights_dir):
        with pytest.raises(UsageError, match="report folder"):
            run(config_of(three, weights_dir, report_dir=three / "out" / "report"))

    @pytest.mark.parametrize("complete", [True, False])
    def test_nothing_to_do(self, tmp_path, write_subject, weights_dir, complete):
        (tmp_path / "in").mkdir()
        if complete:
            write_subject(tmp_path / "in" / "a", lacks=())
        with pytest.raises(NothingToDo):
            run(config_of(tmp_path, weights_dir))


class TestFoldersOfOthers:
    def test_what_a_killed_run_left_is_swept(self, three, weights_dir, no_page):
        part = ".tetrad-0123456789abcdef.part"
        for folder in ("out", "report"):
            (three / folder).mkdir()
            (three / folder / part).write_bytes(b"half")
        run(config_of(three, weights_dir, report_dir=three / "report"))
        assert not (three / "out" / part).exists()
        assert not (three / "report" / part).exists()

    def test_many_stray_files_and_folders_stay_few_lines(self, three, weights_dir, no_page, caplog):
        for number in range(2000):
            (three / "in" / f"stray{number:05d}.pdf").touch()
            (three / "in" / f"none{number:05d}").mkdir()
        summary = run(config_of(three, weights_dir, report_dir=three / "report"))
        assert len(summary.notes) == 2
        assert len(caplog.records) < 50
        assert (three / "report" / "tetrad-run.json").stat().st_size < 20_000

    def test_a_folder_that_goes_with_the_container_is_said(self, three, weights_dir, no_page, monkeypatch, caplog):
        monkeypatch.setattr(run_module, "is_lost_with_container", lambda folder: folder.name != "out")
        run(config_of(three, weights_dir, report_dir=three / "report"))
        assert f"{three / 'report'} lies in the container itself" in caplog.text
        caplog.clear()
        monkeypatch.setattr(run_module, "is_lost_with_container", lambda _: True)
        run(config_of(three, weights_dir, report_dir=three / "report"))
        assert "container" not in caplog.text


@pytest.mark.parametrize("name", ["a\nERROR: forged", "a\rmade", "\x1b[2J\x1b[1;31m", "abc\u202egnp.x"])
def test_a_name_that_acts_is_shown(tmp_path, write_subject, weights_dir, name, capsys):
    """In every message, log, record and page; the output bears the name as it is."""
    for lacks in (("t2f",), ("t1c", "t2f")):
        write_subject(tmp_path / "in" / (name + "2" * len(lacks)), lacks=lacks)
    (tmp_path / "in" / (name + "2") / f"{name}2-t1n.nii.gz").write_bytes(b"damaged")
    code = main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--weights", str(weights_dir),
                 "--report-dir", str(tmp_path / "report"), "--complete-all", "--verbose"])  # fmt: skip
    assert code == 0
    raw = [c for c in name if not c.isprintable()]
    shown = capsys.readouterr().err
    assert not any(c in shown.replace("\n", "") for c in raw)
    assert not any(line.startswith("ERROR") for line in shown.splitlines())
    assert names_in(tmp_path / "out") == sorted(
        name + end for end in ("2-t1n.nii.gz", "2-t2f.nii.gz", "22-t1c.nii.gz", "22-t2f.nii.gz")
    )
    record = (tmp_path / "report" / "tetrad-run.json").read_text()
    assert not any(c in record.replace("\n", "") for c in raw)
    assert {s["subject"] for s in json.loads(record)["subjects"]} == {name + "2", name + "22"}
    page = (tmp_path / "report" / "tetrad-run.html").read_text()
    assert not any(c in page.replace("\n", "") for c in raw)
    assert "forged" not in page or "\\nERROR: forged" in page


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small file system, which needs root")
def test_a_full_disk_leaves_no_half_file(three, weights_dir, capsys):
    output = three / "out"
    output.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", output], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        shutil.rmtree(three / "in" / "b")
        summary = run(config_of(three, weights_dir))
        assert exit_code_of(summary) == 1
        assert "No space left" in (summary.outcomes[0].error or "")
        assert names_in(output) == []
    finally:
        subprocess.run(["umount", output], check=True)


class TestSharedFolder:
    @pytest.fixture
    def clean(self, tmp_path, write_subject, weights_dir):
        """Eight subjects, and what one undisturbed run makes of them."""
        write_copies(write_subject, tmp_path / "in", [f"s{number}" for number in range(8)])
        run(config_of(tmp_path, weights_dir))
        expected = _contents(tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
        return tmp_path, expected

    def test_a_killed_run_leaves_finished_images_only_and_the_next_does_the_rest(self, clean, weights_dir):
        place, expected = clean
        command = [sys.executable, "-m", "app", "--input", place / "in", "--output", place / "out", "--weights",
                   weights_dir, "--model", "regression"]  # fmt: skip
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list((place / "out").glob("*")):
            time.sleep(0.005)
        process.kill()
        process.wait()
        left = _contents(place / "out")
        assert left.items() <= expected.items()
        summary = run(config_of(place, weights_dir))
        assert summary.count("kept") == len(left)
        assert _contents(place / "out") == expected

    def test_two_runs_at_once_make_the_same(self, clean, weights_dir):
        place, expected = clean
        with ThreadPoolExecutor(2) as pool:
            summaries = list(pool.map(lambda _: run(config_of(place, weights_dir, overwrite=True)), range(2)))
        assert [s.count("made") for s in summaries] == [8, 8]
        assert _contents(place / "out") == expected


def _contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cpu,cpu", marks=pytest.mark.cluster)])
def test_sigterm_ends_cleanly_and_the_next_run_does_the_rest(tmp_path, write_subject, weights_dir, device, request):
    if device == "cpu,cpu":
        request.getfixturevalue("ray_package")
    write_copies(write_subject, tmp_path / "in", [f"s{number:02}" for number in range(40)])
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
    done = names_in(tmp_path / "out")
    assert 0 < len(done) < 40
    for name in done:
        assert np.asarray(nib.load(tmp_path / "out" / name).dataobj).max() > 0
    record = json.loads(next((tmp_path / "report").glob("*.json")).read_text())
    assert record["exit_code"] == 143
    # What was on its way to the disk is written and told.
    assert [Path(o["path"]).name for s in record["subjects"] for o in s["outputs"]] == done
    summary = run(config_of(tmp_path, weights_dir))
    assert summary.count("kept") == len(done)
    assert summary.count("made") == 40 - len(done)
