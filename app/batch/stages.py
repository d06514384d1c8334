"""Define what one subject is between the stages: loaded, predicted, written or failed.

Each stage gives a new, frozen value. Only the log is shared: a subject that fails must still be reported with every
warning, output and second that it had by then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import nibabel as nib

from app.batch.outcomes import Outcome, OutputRecord, Status
from app.core.constants import Modality
from app.data.cases import Case, Plan
from app.data.nifti_reader import Volume
from app.inference.models import Model
from app.inference.prepared import Prepared
from app.inference.slicewise.view_fusion import FusedPrediction
from app.preprocessing.expected_quality import Expectation


@dataclass
class CaseLog:
    """Collect what a report will say of one subject, whatever happens to it.

    Attributes:
        inputs: the file of each sequence that was read.
        input_sha256: checksums of the files that the outputs were made from.
        lacked: sequences to make.
        outputs: those on disk so far.
        stages: seconds of work per stage.
    """

    subject: str
    inputs: dict[Modality, str] = field(default_factory=dict)
    input_sha256: dict[Modality, str] = field(default_factory=dict)
    lacked: tuple[Modality, ...] = ()
    outputs: list[OutputRecord] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)

    def close(self, status: Status, error: str | None = None) -> Outcome:
        """Make the subject's outcome, seconds rounded to milliseconds."""
        stages = {stage: round(seconds, 3) for stage, seconds in self.stages.items()}
        return Outcome(
            subject=self.subject,
            status=status,
            inputs=self.inputs,
            input_sha256=self.input_sha256,
            lacked=self.lacked,
            outputs=tuple(self.outputs),
            warnings=tuple(self.warnings),
            error=error,
            seconds=round(sum(stages.values()), 3),
            stages=stages,
        )


@dataclass(frozen=True)
class LoadedCase:
    """Hold a subject that the network can take.

    Attributes:
        case, plan: as known after decoding.
        volumes: the decoded inputs.
        prepared: the same in model space.
    """

    log: CaseLog
    case: Case
    plan: Plan
    volumes: dict[Modality, Volume]
    prepared: Prepared


@dataclass(frozen=True)
class Prediction:
    """Hold one sequence that is still normalized.

    Attributes:
        model: what made it.
        fused: all views as one volume.
        expectation: what it is expected to be worth; None where the model does not tell.
    """

    target: Modality
    model: Model
    fused: FusedPrediction
    expectation: Expectation | None = None


@dataclass(frozen=True)
class Synthesis:
    """Hold one sequence as an image that is ready for the disk.

    Attributes:
        model: what made it.
        confidence: its confidence map; None where the model gives none.
        expectation: what it is expected to be worth; None where the model does not tell.
    """

    target: Modality
    model: Model
    image: nib.Nifti1Image
    confidence: nib.Nifti1Image | None = None
    expectation: Expectation | None = None


@dataclass(frozen=True)
class PredictedCase:
    """Hold a subject whose sequences are made, by the network or (as images already) by the fallback."""

    loaded: LoadedCase
    predictions: tuple[Prediction | Synthesis, ...]

    @property
    def log(self) -> CaseLog:
        """Give the log of the loaded case."""
        return self.loaded.log


@dataclass(frozen=True)
class WrittenCase:
    """Hold a subject with nothing left to do: its outputs were made now, were there before, or none lacked."""

    log: CaseLog
    status: Literal["made", "kept", "complete"]

    def outcome(self) -> Outcome:
        """Close the log."""
        return self.log.close(self.status)


@dataclass(frozen=True)
class FailedCase:
    """Hold a subject that a stage could not do, and why."""

    log: CaseLog
    error: str

    def outcome(self) -> Outcome:
        """Close the log."""
        return self.log.close("failed", self.error)


FinishedCase: TypeAlias = WrittenCase | FailedCase
