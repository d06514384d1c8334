from __future__ import annotations

from app.batch.processors.case_processor import CaseProcessor
from app.batch.processors.clinic_processor import ClinicProcessor
from app.batch.processors.opening import open_processor
from app.batch.processors.segment_processor import SegmentProcessor
from app.core.config import ClinicConfig, ModelOptions, RuntimeOptions, SegmentConfig
from tests.batch.helpers import config_of


def test_each_kind_of_run_has_its_own(tmp_path, segmenting_weights):
    assert isinstance(open_processor(config_of(tmp_path, segmenting_weights)), CaseProcessor)
    config = SegmentConfig(runtime=RuntimeOptions("cpu"), model=ModelOptions(segmenting_weights, "one"))
    processor = open_processor(config)
    assert isinstance(processor, SegmentProcessor)
    assert processor.model_record["name"] == "one"
    assert not processor.on_gpu
    assert processor.runtime.startswith("torch on cpu")


def test_exams_as_scanned_have_their_own(tmp_path, weights_dir):
    processor = open_processor(ClinicConfig(model=ModelOptions(weights_dir, "regression")))
    assert isinstance(processor, ClinicProcessor)
    assert processor.model_record["name"] == "regression"
    assert not processor.on_gpu
    assert processor.runtime.startswith("numpy on cpu")
