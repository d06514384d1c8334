from __future__ import annotations

import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from app.batch.outcomes import exit_code_of
from app.batch.processors.segment_processor import SegmentProcessor
from app.batch.run import run
from app.core.config import ModelOptions, NamingOptions, RuntimeOptions, SegmentConfig
from app.core.errors import NothingToDo, UsageError, WeightsError
from tests.batch.helpers import names_in


@pytest.fixture
def config(tmp_path, segmenting_weights):
    runtime, model = RuntimeOptions("cpu", precision="fp32"), ModelOptions(segmenting_weights, "one")
    return SegmentConfig(tmp_path / "in", tmp_path / "out", runtime, model, synthesis_dir=tmp_path / "made")


@pytest.fixture
def exams(tmp_path, write_subject):
    """One exam without T2-FLAIR, one that lacks nothing, one that lacks too much."""
    write_subject(tmp_path / "in" / "a")
    write_subject(tmp_path / "in" / "b", lacks=())
    write_subject(tmp_path / "in" / "c", lacks=("t1c", "t1n"))
    return tmp_path


def test_exams_with_four_sequences_or_three(exams, config, no_page):
    summary = run(replace(config, report_dir=exams / "report"))
    assert exit_code_of(summary) == 1
    assert [o.status for o in summary.outcomes] == ["made", "made", "failed"]
    assert "three or four sequences" in summary.outcomes[2].error
    assert names_in(exams / "out") == ["a-seg.nii.gz", "b-seg.nii.gz"]
    assert names_in(exams / "made") == ["a-t2f.nii.gz"]
    record = json.loads((exams / "report" / "tetrad-run.json").read_text())
    assert record["model"]["name"] == "one"
    assert [o["target"] for o in record["subjects"][0]["outputs"]] == ["t2f", "seg"]
    assert record["config"]["synthesis_dir"] == str(exams / "made")


def test_what_is_there_is_kept_until_an_input_or_the_file_changes(exams, config, caplog):
    run(config)
    assert [o.status for o in run(config).outcomes] == ["kept", "kept", "failed"]
    (exams / "made" / "a-t2f.nii.gz").unlink()
    (exams / "out" / "b-seg.nii.gz").write_bytes(b"damaged")
    assert [o.status for o in run(config).outcomes] == ["made", "made", "failed"]
    image = nib.load(exams / "in" / "a" / "a-t1n.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) // 2, image.affine), exams / "in" / "a" / "a-t1n.nii.gz")
    assert [o.status for o in run(config).outcomes] == ["made", "kept", "failed"]
    assert "made from other inputs than are there now" in caplog.text


def test_another_models_segmentation_is_kept_with_a_warning(exams, config, caplog):
    run(config)
    other = replace(config, model=replace(config.model, model="completed"), synthesis_dir=None)
    assert [o.status for o in run(other).outcomes] == ["kept", "kept", "failed"]
    assert "this run would make 'synthetic seg from 3" in caplog.text


def test_a_damaged_file_counts_as_missing_under_fallback_alone(tmp_path, write_subject, config):
    write_subject(tmp_path / "in" / "a", lacks=())
    (tmp_path / "in" / "a" / "a-t1n.nii.gz").write_bytes(b"\x1f\x8b damaged")
    assert [o.status for o in run(replace(config, on_error="skip")).outcomes] == ["failed"]
    [outcome] = run(config).outcomes
    assert outcome.lacked == ("t1n",)
    assert names_in(tmp_path / "made") == ["a-t1n.nii.gz"]


def test_the_page_shows_the_segmentation(exams, config):
    run(replace(config, report_dir=exams / "report", synthesis_dir=None))
    assert names_in(exams / "report" / "pictures") == ["a-seg.png", "b-seg.png"]
    assert "segmented tumours" in (exams / "report" / "tetrad-run.html").read_text()


def test_places_and_models_are_checked_first(exams, config):
    with pytest.raises(UsageError, match="is the input"):
        run(replace(config, synthesis_dir=config.input_dir))
    with pytest.raises(WeightsError, match="segments no exams"):
        SegmentProcessor(replace(config, model=replace(config.model, model="tiny")))
    (exams / "empty").mkdir()
    with pytest.raises(NothingToDo):
        run(replace(config, input_dir=exams / "empty"))


def test_exams_of_one_name_would_overwrite_one_another(two_of_one, config):
    summary = run(replace(config, synthesis_dir=None))
    assert [o.status for o in summary.outcomes] == ["failed", "failed"]
    assert "two subjects are named s" in summary.outcomes[0].error
    kept_apart = replace(config, synthesis_dir=None, naming=NamingOptions(name_from_folders=True))
    assert exit_code_of(run(kept_apart)) == 0
    assert len(names_in(two_of_one / "out")) == 2
