from __future__ import annotations

import os

import pytest

from app.batch.clinic import spool as spool_module
from app.batch.clinic.spool import Spool, StudyState
from app.core.errors import OutputError, UsageError
from app.dicom.receiving import ReceivedImage
from tests.batch.helpers import names_in


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool")
    with spool.owned():
        yield spool


def image(study="1.2", instance="1.2.1", content=b"x"):
    return ReceivedImage(study, instance, content)


def test_images_of_a_study_lie_together(spool):
    for n in range(2):
        spool.store(image(instance=f"1.{n}"))
    spool.store(image(study="1.3"))
    assert [s.name for s in spool.studies()] == ["1.2", "1.3"]
    assert len(names_in(spool.studies()[0].images)) == 2
    assert spool.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("study", ["..", "../../x", ".", "", "a/b", "1" * 65])
def test_no_name_leads_out_of_it(spool, study):
    spool.store(image(study=study, instance="../../../x"))
    (kept,) = spool.studies()
    assert kept.folder.parent == spool.folder
    assert len(kept.name) == 64
    assert names_in(spool.folder.parent) == ["spool"]


def test_an_image_that_comes_twice_is_one(spool):
    spool.store(image(content=b"a"))
    before = spool.studies()[0].fingerprint()
    spool.store(image(content=b"b"))
    assert spool.studies()[0].fingerprint() == before
    spool.store(image(instance="1.9"))
    assert spool.studies()[0].fingerprint() != before


def test_a_state_is_read_again(spool):
    spool.store(image())
    (study,) = spool.studies()
    assert study.state() is None
    study.note(StudyState("f", "made", stem="s"))
    study.postpone(5.0)
    assert study.state() == StudyState("f", "made", 1, 5.0, "s")
    for damaged in (b"{", b"{}", b'{"images": "f", "status": "lost"}', b"[]"):
        (study.folder / "state.json").write_bytes(damaged)
        assert study.state() is None


def test_a_study_with_new_images_is_not_removed(spool):
    spool.store(image())
    (study,) = spool.studies()
    seen = study.fingerprint()
    spool.store(image(instance="1.9"))
    assert not spool.remove(study, seen)
    assert spool.remove(study, study.fingerprint())
    assert not spool.studies()


def test_one_node_has_it(spool):
    with pytest.raises(UsageError, match="another node works on the spool"), Spool(spool.folder).owned():
        pass


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be used"), Spool(tmp_path / "file" / "x").owned():
        pass


def test_what_a_killed_node_left_is_swept(tmp_path):
    spool = Spool(tmp_path)
    spool.store(image())
    (study,) = spool.studies()
    part = study.images / ".tetrad-0123456789abcdef.part"
    part.write_bytes(b"")
    os.utime(part, (0, 0))
    with spool.owned():
        assert not part.exists()


def test_a_full_disk(spool, monkeypatch):
    def full(content, path):
        raise OutputError("full")

    monkeypatch.setattr(spool_module, "save_bytes", full)
    with pytest.raises(OutputError):
        spool.store(image())
