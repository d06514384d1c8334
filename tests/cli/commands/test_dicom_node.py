from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time

import pytest

from app.batch.clinic.node import Node
from app.cli import main
from app.cli.commands import dicom_node
from app.core.constants import MODALITIES
from app.core.errors import NothingToDo
from app.dicom import destination
from app.dicom.destination import Destination
from app.dicom.selection import NO_RULES
from app.dicom.sending import send_files
from app.inference.clinic.study import Study
from tests.dicom.helpers import T1, T2, head, write_series
from tests.dicom.servers import free_port

GOOD = ["dicom-node", "--forward", "PACS@127.0.0.1:104", "--allow", "SCANNER"]


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["dicom-node"], "a node needs --spool, --forward, --allow"),
        (["dicom-node", "--forward", "P@h:1", "--spool", "s"], "a node needs --allow"),
        ([*GOOD, "--spool", "s", "--forward", "PACS"], "names no DICOM node"),
        ([*GOOD, "--spool", "s", "--port", "70000"], "there is no port 70000"),
        ([*GOOD, "--spool", "s", "--allow", "A" * 17], "can be no AE title"),
        ([*GOOD, "--spool", "s", "--series-names", "no.toml"], "no.toml cannot be read"),
    ],
)
def test_what_cannot_be_is_said(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_without_the_package_it_is_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(destination.importlib.util, "find_spec", lambda name: None)
    assert main([*GOOD, "--spool", str(tmp_path / "s")]) == 2
    assert "pip install pynetdicom" in capsys.readouterr().err


def test_an_exam_that_lacks_nothing_is_no_error(tmp_path, monkeypatch):
    whole = Study("s", (), dict.fromkeys(MODALITIES), {})
    monkeypatch.setattr("app.inference.clinic.study.open_study", lambda folder, rules: whole)
    with pytest.raises(NothingToDo, match="all four"):
        dicom_node._completion(None, None, NO_RULES, False)(tmp_path, tmp_path)


def test_a_defect_of_one_look_shows(monkeypatch, tmp_path, weights_dir):
    pytest.importorskip("pynetdicom", reason="pynetdicom is not installed")

    def work(self):
        raise ValueError("a defect")

    monkeypatch.setattr(Node, "work", work)
    code = main([*GOOD, "--spool", str(tmp_path), "--port", str(free_port()), "--weights", str(weights_dir)])
    assert code == 1


def test_a_process_that_is_killed_and_one_that_is_ended(tmp_path, weights_dir):
    """What was taken before SIGKILL is there for the next process, which SIGTERM ends."""
    pytest.importorskip("pynetdicom", reason="pynetdicom is not installed")
    port, spool = free_port(), tmp_path / "spool"
    command = [sys.executable, "-m", "app", *GOOD, "--spool", str(spool), "--port", str(port), "--quiet", "600",
               "--weights", str(weights_dir), "--model", "regression"]  # fmt: skip
    node = Destination("TETRAD", "127.0.0.1", port)
    for number, header in enumerate((T1, T2), start=1):
        files = write_series(tmp_path / str(number), head(slices=3), number=number, **header)
        with _running(command, tmp_path / f"{number}.log") as process:
            send_files(files, node, title="SCANNER")
            process.send_signal(signal.SIGKILL if number == 1 else signal.SIGTERM)
            assert process.wait(60) == (-signal.SIGKILL if number == 1 else 143)
    assert len(list((spool / "1.2.3" / "images").iterdir())) == 6


@contextlib.contextmanager
def _running(command, log):
    """A node that listens."""
    with log.open("w") as stream:
        process = subprocess.Popen(command, stderr=stream)
    try:
        until = time.monotonic() + 120
        while "listens on" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()
