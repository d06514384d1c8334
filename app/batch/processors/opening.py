"""Choose what takes the subjects of a run through a model."""

from __future__ import annotations

from typing import Any

from app.batch.processors.case_processor import CaseProcessor
from app.batch.processors.clinic_processor import ClinicProcessor
from app.batch.processors.segment_processor import SegmentProcessor
from app.batch.processors.subject_processor import SubjectProcessor
from app.core.config import ClinicConfig, RunConfig, SegmentConfig


def open_processor(config: RunConfig) -> SubjectProcessor[Any, Any]:
    """Load the model of a run.

    Raises:
        WeightsError, UsageError, DeviceError: the model cannot be loaded.
    """
    if isinstance(config, ClinicConfig):
        return ClinicProcessor(config)
    return SegmentProcessor(config) if isinstance(config, SegmentConfig) else CaseProcessor(config)
