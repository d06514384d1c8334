from __future__ import annotations

from pathlib import Path

import pytest

from app.batch.processors.case_processor import CaseProcessor
from app.batch.processors.clinic_processor import ClinicProcessor
from app.batch.processors.synthesis_processor import provenance_of
from app.batch.run import run
from app.core.config import ClinicConfig, ModelOptions, RunConfig
from app.core.errors import DeviceError
from app.inference.synthesizer import Synthesizer
from tests.batch.helpers import config_of


def test_both_processors_say_the_same_of_one_model(weights_dir, tmp_path):
    model = ModelOptions(weights_dir, "regression")
    case = CaseProcessor(RunConfig(tmp_path, tmp_path / "out", model=model))
    clinic = ClinicProcessor(ClinicConfig(tmp_path, tmp_path / "out", model=model))
    assert case.runtime == clinic.runtime == "numpy on cpu in fp32 (a voxel-wise regression needs no more)"
    assert not case.on_gpu
    assert case.model_record == clinic.model_record


def test_a_record_says_how_a_sequence_was_made(weights_dir, tmp_path):
    processor = CaseProcessor(RunConfig(tmp_path, Path("out"), model=ModelOptions(weights_dir, "regression")))
    made = provenance_of(processor.synthesizer.model, "t2w", "map.nii.gz")
    assert (made.model, made.reference, made.device, made.confidence) == ("regression", "t2w", "cpu", "map.nii.gz")
    assert made.refiner_sha256 is None and made.fusion is None
    assert made.weights_sha256 == processor.synthesizer.model.identity.sha256


def test_a_device_that_cannot_take_the_model_is_told_in_a_sentence(three, weights_dir, monkeypatch):
    def full(*_args, **_options):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nmore of it")

    monkeypatch.setattr(Synthesizer, "from_options", full)
    with pytest.raises(DeviceError, match=r"busy or unavailable\); free it, or use --device cpu"):
        run(config_of(three, weights_dir))
