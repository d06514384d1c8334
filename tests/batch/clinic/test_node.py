from __future__ import annotations

import json
import logging
import os
import threading
import time

import pytest

from app.batch.clinic import node as node_module
from app.batch.clinic.node import Node, Patience
from app.batch.clinic.results import Places
from app.batch.clinic.spool import Spool, StudyState
from app.core.errors import CaseError, NothingToDo, OutputError
from app.core.signals import Interrupted
from app.dicom.destination import Destination, SendError
from app.dicom.receiving import Listener, ReceivedImage, receiving
from app.dicom.sending import send_files
from tests.dicom.helpers import T1, head, write_series
from tests.dicom.servers import free_port, pacs

pytest.importorskip("pynetdicom", reason="pynetdicom is not installed")


class _KilledError(BaseException):
    """Ends the process."""


def _die(*_, **__):
    raise _KilledError


def stub(images, result):
    """Takes the first images for what was made."""
    places = Places(result, "made")
    places.series.mkdir(parents=True)
    for path in sorted(images.iterdir())[:2]:
        (places.series / path.name).write_bytes(path.read_bytes())
    places.record.write_text(json.dumps({"dicom": {"series": "1.9", "files": 2}}))
    return places


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool")
    with spool.owned():
        yield spool


def fill(spool, folder, study="1.2"):
    """Puts a study into the spool, as if it had come two minutes ago."""
    for path in write_series(folder / study, head(slices=3), study=study, patient=study, **T1):
        spool.store(ReceivedImage(study, path.name, path.read_bytes()))
    age(spool, 120)


def age(spool, seconds):
    for path in spool.folder.glob("*/images/*"):
        os.utime(path, (time.time() - seconds,) * 2)


def node_of(spool, to, complete=stub, **patience):
    return Node(spool, complete, to, Patience(**patience))


def nowhere():
    return Destination("PACS", "127.0.0.1", free_port())


def test_a_study_is_completed_sent_and_removed(spool, tmp_path):
    fill(spool, tmp_path)
    with pacs() as archive:
        node_of(spool, archive.address).work()
    assert len(archive.images) == 2
    assert not spool.studies()


def test_it_waits_until_a_study_is_quiet(spool, tmp_path):
    fill(spool, tmp_path)
    age(spool, 10)
    node = node_of(spool, nowhere(), complete=lambda *_: pytest.fail("begun"))
    node.work()
    assert spool.studies()[0].state() is None
    # A clock that was put back by an hour.
    age(spool, -3600)
    node_of(spool, nowhere()).work()
    assert spool.studies()[0].state().status == "made"


def test_further_images_begin_it_anew(spool, tmp_path):
    fill(spool, tmp_path)
    done = []

    def complete(images, result):
        done.append(len(list(images.iterdir())))
        raise CaseError("too few")

    node = node_of(spool, nowhere(), complete)
    node.work()
    node.work()
    assert done == [3]
    spool.store(ReceivedImage("1.2", "late", b""))
    age(spool, 60)
    node.work()
    assert done == [3, 4]


def test_what_comes_while_it_is_completed_keeps_the_result_back(spool, tmp_path):
    fill(spool, tmp_path)

    def complete(images, result):
        made = stub(images, result)
        spool.store(ReceivedImage("1.2", "late", b""))
        return made

    with pacs() as archive:
        node_of(spool, archive.address, complete).work()
        node_of(spool, archive.address, lambda *_: pytest.fail("begun")).work()
        assert not archive.images
    assert spool.studies()


def test_one_refused_study_harms_no_other(spool, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for study in ("1.1", "1.2", "1.3", "1.4"):
        fill(spool, tmp_path, study)

    def complete(images, result):
        what = images.parent.name
        if what == "1.1":
            raise CaseError("the masks disagree.")
        if what == "1.2":
            raise RuntimeError("a defect")
        if what == "1.3":
            raise NothingToDo("all four sequences are there.")
        return stub(images, result)

    with pacs() as archive:
        node_of(spool, archive.address, complete).work()
    assert {str(d.StudyInstanceUID) for d in archive.images} == {"1.4"}
    assert [s.name for s in spool.studies()] == ["1.1", "1.2"]
    assert "Study 1.1 was not completed: the masks disagree." in caplog.text
    assert "unexpected RuntimeError: a defect" in caplog.text
    assert "Study 1.3: all four sequences are there." in caplog.text


def test_a_study_that_cannot_be_done_stays_no_longer_than_told(spool, tmp_path, caplog):
    fill(spool, tmp_path)

    def refuse(images, result):
        raise CaseError("no")

    node = node_of(spool, nowhere(), refuse, keep=2)
    node.work()
    age(spool, 7100)
    node.work()
    assert spool.studies()
    age(spool, 7201)
    node.work()
    assert not spool.studies()
    assert "removed, 2 hours after its last image" in caplog.text


class TestADeadForwardAddress:
    def test_it_is_tried_again_later(self, spool, tmp_path, caplog, monkeypatch):
        fill(spool, tmp_path)
        port = free_port()
        node = node_of(spool, Destination("PACS", "127.0.0.1", port))
        for _ in range(3):
            node.work()
        (study,) = spool.studies()
        assert study.state().tries == 1
        assert "cannot be reached" in caplog.text
        assert "Tried again in 30 s" in caplog.text
        later = time.time() + 31
        monkeypatch.setattr(node_module.time, "time", lambda: later)
        node.work()
        assert study.state().tries == 2
        assert study.state().due == later + 60
        monkeypatch.setattr(node_module.time, "time", lambda: later + 61)
        with pacs(port) as archive:
            node.work()
        assert len(archive.images) == 2
        assert not spool.studies()

    def test_it_is_given_up_in_the_end(self, spool, tmp_path, caplog, monkeypatch):
        fill(spool, tmp_path)
        node = node_of(spool, nowhere(), keep=1)
        node.work()
        later = time.time() + 3590
        monkeypatch.setattr(node_module.time, "time", lambda: later)
        node.work()
        assert not spool.studies()
        assert "given up after 2 tries; its result is removed" in caplog.text


class TestEnds:
    def test_a_killed_node_goes_on_where_it_was(self, spool, tmp_path, monkeypatch):
        fill(spool, tmp_path)
        with pacs() as archive:
            monkeypatch.setattr(node_module, "send_result", _die)
            with pytest.raises(_KilledError):
                node_of(spool, archive.address).work()
            monkeypatch.undo()
            # Another process: the result is there and not made again.
            node_of(spool, archive.address, complete=lambda *_: pytest.fail("made again")).work()
        assert len(archive.images) == 2

    def test_a_study_that_ends_the_process_is_left_alone(self, spool, tmp_path, caplog):
        fill(spool, tmp_path)
        for _ in range(3):
            with pytest.raises(_KilledError):
                node_of(spool, nowhere(), _die).work()
        node_of(spool, nowhere(), _die).work()
        assert spool.studies()[0].state().status == "refused"
        assert "it ended the process 3 times" in caplog.text

    def test_a_signal_is_no_fault_of_the_study(self, spool, tmp_path):
        fill(spool, tmp_path)

        def end(images, result):
            raise Interrupted(15)

        for _ in range(4):
            with pytest.raises(Interrupted):
                node_of(spool, nowhere(), end).work()
        node_of(spool, nowhere()).work()
        assert spool.studies()[0].state().status == "made"

    def test_an_empty_study_goes(self, spool):
        (spool.folder / "1.2" / "images").mkdir(parents=True)
        node_of(spool, nowhere(), complete=lambda *_: pytest.fail("begun")).work()
        assert not spool.studies()

    @pytest.mark.parametrize("fault", [OutputError("disk full"), RuntimeError("a defect")])
    def test_whatever_happens_while_sending_is_tried_again_later(self, spool, tmp_path, monkeypatch, caplog, fault):
        fill(spool, tmp_path)
        calls = []

        def fail(*_, **__):
            calls.append(1)
            raise fault

        monkeypatch.setattr(node_module, "send_result", fail)
        node = node_of(spool, nowhere(), keep=1)
        for _ in range(3):
            node.work()
        assert len(calls) == 1
        assert str(fault) in caplog.text
        later = time.time() + 3590
        monkeypatch.setattr(node_module.time, "time", lambda: later)
        node.work()
        assert not spool.studies()

    def test_a_full_disk_does_not_send_without_end(self, spool, tmp_path, monkeypatch):
        fill(spool, tmp_path)
        node_of(spool, nowhere()).work()
        calls = []
        monkeypatch.setattr(node_module, "send_result", lambda *_, **__: calls.append(1) or _refuse())
        monkeypatch.setattr("app.batch.clinic.spool.SpooledStudy.note", _full)
        later = time.time() + 40
        monkeypatch.setattr(node_module.time, "time", lambda: later)
        node = node_of(spool, nowhere())
        for _ in range(3):
            node.work()
        assert len(calls) == 1

    def test_a_full_disk_ends_nothing(self, spool, tmp_path, monkeypatch, caplog):
        fill(spool, tmp_path)
        monkeypatch.setattr("app.batch.clinic.spool.SpooledStudy.note", _full)
        node_of(spool, nowhere()).work()
        assert "No space left" in caplog.text


def _refuse():
    raise SendError("no")


def _full(study, state: StudyState):
    raise OSError(28, "No space left")


def test_three_studies_at_once(spool, tmp_path):
    with pacs() as archive, receiving(Listener("127.0.0.1", 0, "T", ("A",)), spool.store) as port:
        senders = []
        for study in ("1.1", "1.2", "1.3"):
            files = write_series(tmp_path / study, head(slices=12), study=study, patient=study, **T1)
            to = Destination("T", "127.0.0.1", port)
            senders.append(threading.Thread(target=send_files, args=(files, to), kwargs={"title": "A"}))
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        assert [len(list(s.images.iterdir())) for s in spool.studies()] == [12, 12, 12]
        age(spool, 60)
        node_of(spool, archive.address).work()
    assert sorted(str(d.StudyInstanceUID) for d in archive.images) == ["1.1"] * 2 + ["1.2"] * 2 + ["1.3"] * 2
    assert all(d.PatientID == d.StudyInstanceUID for d in archive.images)
