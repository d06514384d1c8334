from __future__ import annotations

import pytest

from app.batch.engines.shared_folders import await_outputs, check_folders, with_absolute_paths
from app.batch.outcomes import Outcome, OutputRecord
from app.core.config import ModelOptions, RunConfig, SegmentConfig
from app.core.errors import DeviceError


def test_all_paths_start_at_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ModelOptions(weights_dir=type(tmp_path)("w"))
    config = SegmentConfig(type(tmp_path)("in"), type(tmp_path)("out"), model=model, report_dir=type(tmp_path)("r"))
    absolute = with_absolute_paths(config)
    assert isinstance(absolute, SegmentConfig)
    assert (absolute.input_dir, absolute.report_dir) == (tmp_path / "in", tmp_path / "r")
    assert (absolute.model.weights_dir, absolute.confidence_dir) == (tmp_path / "w", None)


def test_folders_that_a_worker_does_not_see(tmp_path):
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    check_folders(RunConfig(tmp_path / "in", tmp_path / "out"))
    for missing in (RunConfig(tmp_path / "in", tmp_path / "none"), RunConfig(tmp_path / "none", tmp_path / "out")):
        with pytest.raises(DeviceError, match=r"does not see .*none; mount it on every node"):
            check_folders(missing)


def test_an_output_that_lies_elsewhere_is_noticed(tmp_path):
    (tmp_path / "a.nii.gz").touch()
    seen, hidden = (Outcome("a", "made", outputs=(OutputRecord("t2f", str(tmp_path / n), ""),))
                    for n in ("a.nii.gz", "b.nii.gz"))  # fmt: skip
    assert await_outputs(seen, patience=0)
    assert not await_outputs(hidden, patience=0)
    assert await_outputs(Outcome("a", "failed"), patience=0)
