from __future__ import annotations

import json

import pytest

from app import Synthesizer
from app.batch.clinic import completion
from app.batch.clinic.completion import Wish, check_wish, complete_study
from app.batch.clinic.results import Forms
from app.core.errors import CaseError, UsageError
from app.inference.clinic.study import open_study
from tests.batch.helpers import names_in
from tests.dicom.servers import pacs


@pytest.fixture
def model(weights_dir):
    return Synthesizer("regression", weights=weights_dir).model


def test_an_exam_is_completed_and_then_kept(scanned_heads, model, tmp_path, known_brain, monkeypatch):
    study = open_study(scanned_heads / "head")
    places = complete_study(study, model, Wish(), tmp_path)
    assert places.image == tmp_path / "head-t2f.nii.gz"
    assert json.loads(places.record.read_text())["request"]["inputs"].keys() == {"t1n", "t1c", "t2w"}
    monkeypatch.setattr(completion, "complete_exam", lambda *_, **__: pytest.fail("made again"))
    complete_study(study, model, Wish(), tmp_path)


def test_another_way_of_making_is_no_reason_to_lose_a_result(scanned_heads, model, tmp_path, known_brain):
    study = open_study(scanned_heads / "head")
    before = complete_study(study, model, Wish(), tmp_path).image.read_bytes()
    with pytest.raises(UsageError, match="--overwrite makes it again"):
        complete_study(study, model, Wish(reference="t1c"), tmp_path)
    assert (tmp_path / "head-t2f.nii.gz").read_bytes() == before
    complete_study(study, model, Wish(reference="t1c", overwrite=True), tmp_path)
    assert (tmp_path / "head-t2f.nii.gz").read_bytes() != before


def test_it_is_sent_once_it_is_written(scanned_heads, model, tmp_path, known_brain):
    study = open_study(scanned_heads / "dicom")
    with pacs() as node:
        wish = Wish(forms=Forms(dicom=True), send_to=node.address)
        places = complete_study(study, model, wish, tmp_path)
        complete_study(study, model, wish, tmp_path)
        assert len(node.images) == len(names_in(places.series))


def test_a_refused_exam_leaves_nothing(scanned_heads, model, tmp_path, known_brain):
    study = open_study(scanned_heads / "head")
    with pytest.raises(CaseError, match="is not among"):
        complete_study(study, model, Wish(reference="t2f"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nifti_has_no_series_to_derive_from(scanned_heads):
    study = open_study(scanned_heads / "head")
    with pytest.raises(UsageError, match="holds no DICOM"):
        check_wish(study, Wish(forms=Forms(dicom=True)))
