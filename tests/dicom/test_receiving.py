from __future__ import annotations

import pydicom
import pytest

from app.core.errors import OutputError, UsageError
from app.dicom import destination
from app.dicom.destination import Destination, SendError
from app.dicom.receiving import Listener, receiving
from app.dicom.sending import send_files
from tests.dicom.helpers import T1, change, head, write_series

pytest.importorskip("pynetdicom", reason="pynetdicom is not installed")


@pytest.fixture
def files(tmp_path):
    return write_series(tmp_path / "series", head(slices=3), **T1)


def listening(store, port=0, allowed=("SCANNER",)):
    return receiving(Listener("127.0.0.1", port, "TETRAD", allowed), store)


def send(files, port, title="SCANNER", called="TETRAD"):
    send_files(files, Destination(called, "127.0.0.1", port), title=title, attempts=1)


def test_an_image_is_kept_as_it_came(files, tmp_path):
    images = []
    with listening(images.append) as port:
        send(files, port)
    assert {i.instance for i in images} == {"1.2.3.1.1", "1.2.3.1.2", "1.2.3.1.3"}
    assert {i.study for i in images} == {"1.2.3"}
    (tmp_path / "kept.dcm").write_bytes(images[0].content)
    kept = pydicom.dcmread(tmp_path / "kept.dcm")
    original = next(d for d in map(pydicom.dcmread, files) if d.SOPInstanceUID == kept.SOPInstanceUID)
    assert kept.PixelData == original.PixelData
    assert kept.PatientName == original.PatientName


def test_who_may_not_send_is_refused(files, caplog):
    images = []
    with listening(images.append) as port:
        with pytest.raises(SendError, match="Calling AE title not recognised"):
            send(files, port, title="STRANGER")
        with pytest.raises(SendError, match="Called AE title not recognised"):
            send(files, port, called="OTHER")
    assert not images
    assert "STRANGER@127.0.0.1 was refused" in caplog.text


def test_what_was_made_is_passed_over(files):
    images = []
    change(files[0], SyntheticData="YES")
    with listening(images.append) as port:
        send(files, port)
    assert len(images) == 2


def test_a_full_disk_is_told_to_the_sender(files, caplog):
    def full(image):
        raise OutputError("no room here")

    with listening(full) as port:
        with pytest.raises(SendError, match=r"has no room \(0xA700\)"):
            send(files, port)
    assert "no room here" in caplog.text


def test_an_image_without_a_study_is_refused(files):
    change(files[0], StudyInstanceUID=None)
    dataset = pydicom.dcmread(files[0])
    del dataset.StudyInstanceUID
    dataset.save_as(files[0])
    with listening(lambda image: None) as port, pytest.raises(SendError, match="0xC000"):
        send(files, port)


def test_a_port_that_is_taken_is_one_sentence():
    with listening(lambda image: None) as port:
        with pytest.raises(UsageError, match="cannot be listened on"):
            with listening(lambda image: None, port):
                pass


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(destination.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install pynetdicom"), listening(lambda image: None):
        pass
