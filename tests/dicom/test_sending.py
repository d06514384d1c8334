from __future__ import annotations

import shutil
import subprocess

import pytest

from app.dicom import sending
from app.dicom.destination import Destination, SendError
from app.dicom.sending import send_files
from tests.dicom.helpers import T1, head, write_series
from tests.dicom.servers import free_port, pacs

pytest.importorskip("pynetdicom", reason="pynetdicom is not installed")


@pytest.fixture
def files(tmp_path):
    return write_series(tmp_path / "series", head(slices=4), **T1)


@pytest.fixture
def waits(monkeypatch):
    seconds = []
    monkeypatch.setattr(sending, "_wait", seconds.append)
    return seconds


def test_every_image_arrives(files):
    with pacs() as node:
        send_files(files, node.address)
        assert len({d.SOPInstanceUID for d in node.images}) == 4
        assert set(node.callers) == {"TETRAD"}


def test_a_node_without_room_is_asked_again_for_the_rest(files, waits):
    full = iter([0, 0xA700, 0, 0, 0])
    with pacs(answer=lambda dataset: next(full)) as node:
        send_files(files, node.address)
        assert len(node.images) == len({d.SOPInstanceUID for d in node.images}) == 4
    assert waits == [2]


def test_nobody_there(files, waits):
    nobody = Destination("PACS", "127.0.0.1", free_port())
    with pytest.raises(SendError, match=r"not sent whole: PACS@127.0.0.1:\d+ cannot be reached, asked 3 times"):
        send_files(files, nobody)
    assert waits == [2, 4]


def test_an_unknown_caller_is_told_so_at_once(files, waits):
    with pacs(knows="OTHER") as node:
        with pytest.raises(SendError, match=r"refuses TETRAD \(Calling AE title not recognised\)"):
            send_files(files, node.address)
        with pytest.raises(SendError, match="Called AE title not recognised"):
            send_files(files, Destination("WRONG", "127.0.0.1", node.address.port), title="OTHER")
        send_files(files, node.address, title="OTHER")
    assert not waits


def test_an_image_that_is_refused_ends_it(files, waits):
    answers = iter([0, 0, 0xA900])
    with pacs(answer=lambda dataset: next(answers)) as node:
        with pytest.raises(SendError, match=r"refuses .*\(0xA900\); it took 2 of 4 images"):
            send_files(files, node.address)
    assert not waits


def test_dcmtk_takes_it(files, tmp_path):
    program = shutil.which("storescp")
    # pynetdicom has a program of that name, which has other options.
    if (
        program is None
        or b"dcmtk" not in subprocess.run([program, "--version"], capture_output=True, check=False).stdout
    ):
        pytest.skip("dcmtk is not installed")
    port = free_port()
    (tmp_path / "archive").mkdir()
    command = [program, "--aetitle", "PACS", "-od", str(tmp_path / "archive"), str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            send_files(files, Destination("PACS", "127.0.0.1", port), attempts=6)
        finally:
            process.kill()
    assert len(list((tmp_path / "archive").iterdir())) == 4
