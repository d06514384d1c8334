from __future__ import annotations

import pytest

from app.batch.processors.subject_processor import SubjectProcessor, opened
from app.batch.stages import LoadedCase
from app.core.config import RunConfig
from app.core.errors import CaseError, DeviceError, WeightsError
from app.data.cases import Case


class _Broken(SubjectProcessor[LoadedCase, LoadedCase]):
    """Breaks in its first stage."""

    runtime, on_gpu, model_record = "", False, {}

    def __init__(self, error: Exception) -> None:
        super().__init__(RunConfig())
        self.error = error

    def _read(self, case, case_log):
        raise self.error

    def _compute(self, loaded):
        raise AssertionError("a subject that failed went on")

    _write_all = _compute


@pytest.mark.parametrize(
    "error,sentence",
    [(CaseError("no brain."), "no brain."), (ZeroDivisionError("by 0"), "unexpected ZeroDivisionError: by 0; please")],
)
def test_a_subject_that_fails_passes_the_later_stages(error, sentence):
    processor = _Broken(error)
    outcome = processor.write(processor.compute(processor.read(Case("a", {}))))
    assert outcome.status == "failed"
    assert outcome.error.startswith(sentence)
    assert set(outcome.stages) == {"read"}


@pytest.mark.parametrize(
    "error,kind,sentence",
    [
        (RuntimeError("busy"), DeviceError, "could not be loaded on device auto"),
        (ValueError("odd"), WeightsError, "fetch the weights again"),
        (WeightsError("gone."), WeightsError, "gone"),
        (MemoryError("full"), MemoryError, "full"),
    ],
)
def test_what_a_model_breaks_on_becomes_one_sentence(error, kind, sentence):
    def fail():
        raise error

    with pytest.raises(kind, match=sentence):
        opened(fail, RunConfig())
