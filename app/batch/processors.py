"""Choose what takes the subjects of a run through a model."""

from __future__ import annotations

from typing import Any

from app.batch.case_processor import CaseProcessor
from app.batch.segment_processor import SegmentProcessor
from app.batch.subject_processor import SubjectProcessor
from app.core.config import RunConfig, SegmentConfig


def open_processor(config: RunConfig) -> SubjectProcessor[Any, Any]:
    """Load the model of a run.

    Raises:
        WeightsError, UsageError, DeviceError: the model cannot be loaded.
    """
    return SegmentProcessor(config) if isinstance(config, SegmentConfig) else CaseProcessor(config)
