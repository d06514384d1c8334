"""What a run was asked to do: values that exist, and the form of the record."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from app.core.config import ClusterOptions, ModelOptions, RunConfig, RuntimeOptions
from app.core.errors import UsageError


@pytest.mark.parametrize("options", [{"precision": "q"}, {"backend": "zz"}, {"batch_size": 0}])
def test_a_way_of_running_that_does_not_exist(options):
    with pytest.raises(UsageError, match="do not exist"):
        RuntimeOptions(**options)


def test_a_fusion_that_does_not_exist():
    with pytest.raises(UsageError, match=r"fusion='best' does not exist; use one of mean, median, confidence"):
        ModelOptions(fusion="best")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options,sentence",
    [
        ({"engine": "dask"}, "does not exist; use local or ray"),
        ({"engine": "ray", "worker_gpus": 0.0}, "no share of a GPU"),
        ({"engine": "ray", "worker_gpus": 2.0}, "no share of a GPU"),
        ({"ray_address": "auto"}, "need --engine ray"),
        ({"workers": 3}, "need --engine ray"),
    ],
)
def test_workers_that_do_not_exist(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        ClusterOptions(**options)


def test_maps_of_confidence_need_a_model_that_is_asked_for_its_error():
    with pytest.raises(ValueError, match="with_error"):
        RunConfig(confidence_dir=Path("maps"))
    assert RunConfig(confidence_dir=Path("maps"), model=ModelOptions(with_error=True)).confidence_dir == Path("maps")


def test_the_record_holds_every_option_on_one_level():
    config = RunConfig(Path("a"), Path("b"), RuntimeOptions("cpu", batch_size=3), ModelOptions(Path("w"), "unet"))
    assert json.loads(json.dumps(config.to_json())) == {
        "input_dir": "a", "output_dir": "b", "report_dir": None, "weights_dir": "w", "model": "unet", "device": "cpu",
        "backend": "auto", "precision": "auto", "batch_size": 3, "refine": None, "specialists": True, "jobs": None,
        "fusion": None, "flip_average": None, "confidence_dir": None, "on_error": "fallback", "complete_all": False,
        "overwrite": False, "profile_file": None, "part_id": 0, "num_parts": 1, "intensity": None, "resume": "same",
        "names": [], "run": None, "name_from_folders": False, "view": False, "quality": "default", "engine": "local",
        "ray_address": None, "workers": None, "worker_cores": None, "worker_gpus": 1.0, "min_expected_ssim": None,
    }  # fmt: skip


def test_it_needs_the_standard_library_alone():
    code = "import sys; import app.core.config; sys.exit(any(m in sys.modules for m in ('numpy', 'pydantic', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
