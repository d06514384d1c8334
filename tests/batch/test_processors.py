from __future__ import annotations

from app.batch.case_processor import CaseProcessor
from app.batch.processors import open_processor
from app.batch.segment_processor import SegmentProcessor
from app.core.config import ModelOptions, RuntimeOptions, SegmentConfig
from tests.batch.helpers import config_of


def test_each_kind_of_run_has_its_own(tmp_path, segmenting_weights):
    assert isinstance(open_processor(config_of(tmp_path, segmenting_weights)), CaseProcessor)
    config = SegmentConfig(runtime=RuntimeOptions("cpu"), model=ModelOptions(segmenting_weights, "one"))
    processor = open_processor(config)
    assert isinstance(processor, SegmentProcessor)
    assert processor.model_record["name"] == "one"
    assert not processor.on_gpu
    assert processor.runtime.startswith("torch on cpu")
