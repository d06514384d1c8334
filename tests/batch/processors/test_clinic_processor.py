from __future__ import annotations

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from app.batch.outcomes import exit_code_of
from app.batch.run import run
from app.core.config import ClinicConfig, ModelOptions
from app.dicom import sending
from tests.batch.helpers import names_in
from tests.dicom.servers import free_port, pacs


@pytest.fixture
def studies(tmp_path, scanned_heads, known_brain):
    """An exam as DICOM, one as NIfTI, and one of a single sequence."""
    shutil.copytree(scanned_heads / "dicom", tmp_path / "in" / "a-dicom")
    shutil.copytree(scanned_heads / "dicom" / "1", tmp_path / "in" / "b-alone")
    shutil.copytree(scanned_heads / "head", tmp_path / "in" / "c-nifti")
    return tmp_path


def configured(place, weights, **options):
    return ClinicConfig(
        place / "in", place / "out", model=ModelOptions(weights, "regression"), report_dir=place / "report", **options
    )


def statuses(summary):
    return {o.subject: o.status for o in summary.outcomes}


def test_one_bad_exam_harms_no_other(studies, weights_dir):
    summary = run(configured(studies, weights_dir))
    assert statuses(summary) == {"a-dicom": "made", "b-alone": "failed", "c-nifti": "made"}
    assert exit_code_of(summary) == 1
    assert [n for n in names_in(studies / "out") if n.endswith(".nii.gz")] == [
        "a-dicom-t2f.nii.gz",
        "c-nifti-t2f.nii.gz",
    ]
    assert not [n for n in names_in(studies / "out") if n.startswith("b-")]
    record = json.loads((studies / "report" / "tetrad-run.json").read_text())
    assert [s["subject"] for s in record["subjects"]] == ["a-dicom", "b-alone", "c-nifti"]
    made = record["subjects"][2]
    assert made["outputs"][0]["reference"] == "t2w"
    assert set(made["input_sha256"]) == {"t1n", "t1c", "t2w"}
    page = (studies / "report" / "tetrad-run.html").read_text()
    assert page.count("<figure") == 2
    assert "fewer than two sequences" in page


def test_the_rest_is_done_by_the_next_run(studies, weights_dir, no_page):
    shutil.rmtree(studies / "in" / "b-alone")
    run(configured(studies, weights_dir))
    before = (studies / "out" / "a-dicom-t2f.nii.gz").stat().st_mtime_ns
    (studies / "out" / "c-nifti-t2f.nii.gz").write_bytes(b"cut")
    again = run(configured(studies, weights_dir))
    assert statuses(again) == {"a-dicom": "kept", "c-nifti": "made"}
    assert (studies / "out" / "a-dicom-t2f.nii.gz").stat().st_mtime_ns == before
    assert exit_code_of(again) == 0


def test_other_inputs_make_it_again(studies, weights_dir, no_page, caplog):
    for name in ("a-dicom", "b-alone"):
        shutil.rmtree(studies / "in" / name)
    run(configured(studies, weights_dir))
    path = studies / "in" / "c-nifti" / "head-t1n.nii"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + np.int16(1), image.affine, image.header), path)
    assert statuses(run(configured(studies, weights_dir, resume="any"))) == {"c-nifti": "kept"}
    assert "--overwrite makes it again" in caplog.text
    assert statuses(run(configured(studies, weights_dir))) == {"c-nifti": "made"}


def test_several_that_lack_are_made_where_that_is_said(studies, weights_dir, no_page):
    for name in ("a-dicom", "b-alone"):
        shutil.rmtree(studies / "in" / name)
    (studies / "in" / "c-nifti" / "head-t1c.nii").unlink()
    refused = run(configured(studies, weights_dir))
    assert "give --complete-all" in refused.outcomes[0].error
    assert not names_in(studies / "out")
    run(configured(studies, weights_dir, complete_all=True))
    assert [n for n in names_in(studies / "out") if n.endswith(".nii.gz")] == [
        "c-nifti-t1c.nii.gz",
        "c-nifti-t2f.nii.gz",
    ]


def test_a_result_that_is_made_again_is_not_said_to_be_kept(studies, weights_dir, no_page):
    for name in ("a-dicom", "b-alone"):
        shutil.rmtree(studies / "in" / name)
    (studies / "in" / "c-nifti" / "head-t1c.nii").unlink()
    run(configured(studies, weights_dir, complete_all=True))
    record = studies / "out" / "c-nifti-t1c.json"
    form = json.loads(record.read_text())
    form["request"]["model"] = "another"
    record.write_text(json.dumps(form))
    (outcome,) = run(configured(studies, weights_dir, complete_all=True)).outcomes
    assert outcome.status == "kept"
    assert any("was made in another way" in w for w in outcome.warnings)
    (studies / "out" / "c-nifti-t2f.nii.gz").unlink()
    (outcome,) = run(configured(studies, weights_dir, complete_all=True)).outcomes
    assert outcome.status == "made"
    assert not any("is kept" in w for w in outcome.warnings)


def test_parts_share_the_exams(studies, weights_dir, no_page):
    done = [statuses(run(configured(studies, weights_dir, part_id=part, num_parts=2))) for part in range(2)]
    assert done == [{"a-dicom": "made", "c-nifti": "made"}, {"b-alone": "failed"}]


def test_a_node_that_is_away_fails_the_exam_and_keeps_the_result(studies, weights_dir, no_page, monkeypatch):
    pytest.importorskip("pynetdicom", reason="pynetdicom is not installed")
    monkeypatch.setattr(sending, "_wait", lambda seconds: None)
    for name in ("b-alone", "c-nifti"):
        shutil.rmtree(studies / "in" / name)
    port = free_port()
    away = run(configured(studies, weights_dir, send=f"PACS@127.0.0.1:{port}"))
    assert "cannot be reached" in away.outcomes[0].error
    assert exit_code_of(away) == 1
    with pacs(port) as node:
        back = run(configured(studies, weights_dir, send=f"PACS@127.0.0.1:{port}"))
        assert statuses(back) == {"a-dicom": "kept"}
        assert len(node.images) == len(names_in(studies / "out" / "a-dicom-t2f-dicom"))
