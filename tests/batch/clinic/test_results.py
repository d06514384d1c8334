from __future__ import annotations

import dataclasses

import numpy as np
import pydicom
import pytest

from app import Synthesizer
from app.batch.clinic import results
from app.batch.clinic.results import Forms, Places, is_whole, read_record, request_of, send_result, write_result
from app.core.errors import OutputError
from app.dicom import sending
from app.dicom.destination import Destination, SendError
from app.inference.clinic.pipeline import complete_exam
from app.inference.clinic.study import open_study
from tests.batch.helpers import names_in
from tests.dicom.servers import free_port, pacs

ALL = Forms(dicom=True, view=True)


@pytest.fixture
def study(scanned_heads):
    return open_study(scanned_heads / "dicom")


@pytest.fixture
def exam(study, weights_dir, known_brain):
    model = Synthesizer("regression", weights=weights_dir).model
    sequences = {m: read() for m, read in study.readers.items()}
    return complete_exam(sequences, model), request_of(sequences, model)


@pytest.fixture
def places(tmp_path):
    return Places(tmp_path / "out", "p-t2f")


def test_a_result_is_whole_in_the_forms_it_has(study, exam, places):
    done, request = exam
    write_result(study, done, request, places)
    assert names_in(places.folder) == ["p-t2f.json", "p-t2f.nii.gz", "p-t2f.png"]
    assert is_whole(places, Forms())
    assert not is_whole(places, ALL)
    write_result(study, done, request, places, ALL)
    assert is_whole(places, ALL)
    assert names_in(places.series)[0] == "0001.dcm"
    places.image.write_bytes(b"damaged")
    assert not is_whole(places, Forms())


def test_a_series_with_a_stamp_is_not_one_without(study, exam, places):
    done, request = exam
    write_result(study, done, request, places, Forms(dicom=True, stamp=True))
    assert is_whole(places, Forms(dicom=True, stamp=True))
    assert not is_whole(places, Forms(dicom=True))
    assert is_whole(places, Forms())


def test_uids_stay_while_the_request_does(study, exam, places):
    done, request = exam

    def uid():
        write_result(study, done, request, places, Forms(dicom=True))
        return pydicom.dcmread(places.series / "0001.dcm").SOPInstanceUID

    first, made = uid(), read_record(places.record)["made"]
    assert uid() == first
    assert read_record(places.record)["made"] == made
    request = {**request, "mask": "another"}
    record = read_record(places.record)
    results.save_record({**record, "made": "2020-01-01T00:00:00+00:00"}, places.record)
    uid()
    assert read_record(places.record)["made"] > "2021"


def test_a_series_that_cannot_be_written_leaves_the_earlier_one(study, exam, places, monkeypatch):
    done, request = exam
    write_result(study, done, request, places, Forms(dicom=True))
    before = names_in(places.series)
    real = results.save_bytes

    def full(content, path):
        if path.name == "0003.dcm":
            raise OutputError("the disk is full")
        real(content, path)

    monkeypatch.setattr(results, "save_bytes", full)
    with pytest.raises(OutputError):
        write_result(study, done, request, places, Forms(dicom=True))
    assert names_in(places.series) == before
    assert names_in(places.folder) == ["p-t2f-dicom", "p-t2f.json", "p-t2f.nii.gz", "p-t2f.png"]


def test_a_request_depends_on_the_mask(study, weights_dir, scanned_heads):
    model = Synthesizer("regression", weights=weights_dir).model
    sequences = {"t1n": study.readers["t1n"]()}
    plain = request_of(sequences, model)
    assert plain == request_of(sequences, model)
    assert plain != request_of(sequences, model, mask=scanned_heads / "mask.nii")
    other = {"t1n": dataclasses.replace(sequences["t1n"], sha256="0")}
    assert plain != request_of(other, model)


def test_no_record_is_an_empty_one(tmp_path):
    (tmp_path / "list.json").write_text("[1]")
    assert read_record(tmp_path / "none.json") == read_record(tmp_path / "list.json") == {}


class TestSending:
    def test_a_series_is_sent_once(self, study, exam, places):
        done, request = exam
        write_result(study, done, request, places, Forms(dicom=True))
        with pacs() as node:
            assert send_result(places, node.address)
            assert not send_result(places, node.address)
            assert len(node.images) == len(names_in(places.series))
            assert {str(d.SyntheticData) for d in node.images} == {"YES"}
            np.testing.assert_array_equal(
                node.images[0].pixel_array, pydicom.dcmread(places.series / "0001.dcm").pixel_array
            )

    def test_a_series_that_is_not_whole_is_not_sent(self, study, exam, places):
        done, request = exam
        write_result(study, done, request, places, Forms(dicom=True))
        (places.series / "0001.dcm").unlink()
        with pacs() as node:
            with pytest.raises(SendError, match="is not whole"):
                send_result(places, node.address)
            assert not node.images

    def test_what_was_not_taken_is_sent_by_the_next_run(self, study, exam, places, monkeypatch):
        pytest.importorskip("pynetdicom", reason="pynetdicom is not installed")
        monkeypatch.setattr(sending, "_wait", lambda seconds: None)
        done, request = exam
        write_result(study, done, request, places, Forms(dicom=True))
        with pytest.raises(SendError, match="run again to send it"):
            send_result(places, Destination("PACS", "127.0.0.1", free_port()))
        with pacs() as node:
            assert send_result(places, node.address)
