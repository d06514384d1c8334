"""What became of each subject, and of a whole run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from app.core.constants import Modality
from app.core.errors import ExitCode

Status = Literal["made", "kept", "complete", "failed"]


@dataclass
class Outcome:
    """What became of one subject.

    Attributes:
        status: `made` (now), `kept` (a good output was there), `complete` (nothing lacked), `failed`.
        outputs: per sequence made: path, sha256, model, weights sha256, device.
        error: why it failed.
        seconds, stages: of work on it, in all and per stage (read, network, write); subjects overlap, so that a run
            takes less than the sum.
    """

    subject: str
    status: Status
    inputs: dict[Modality, str] = field(default_factory=dict)
    lacked: tuple[Modality, ...] = ()
    outputs: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    error: str | None = None
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)

    def sentence(self) -> str:
        """One line for a person."""
        if self.status == "complete":
            return f"{self.subject}: has all four sequences, passed over"
        if self.status == "failed":
            return f"{self.subject}: FAILED: {self.error}"
        names = ", ".join(o["target"] for o in self.outputs)
        if self.status == "kept":
            return f"{self.subject}: {names} is there already, kept (--overwrite makes it again)"
        models = ", ".join(dict.fromkeys(o["model"] for o in self.outputs))
        return f"{self.subject}: {names} made from {', '.join(self.inputs)} in {self.seconds:.1f} s ({models})"


@dataclass
class Summary:
    """A whole run."""

    outcomes: list[Outcome]
    notes: tuple[str, ...]
    signal_number: int | None = None
    stopped: bool = False
    report_failed: bool = False

    def count(self, status: Status) -> int:
        """How many subjects ended so."""
        return sum(o.status == status for o in self.outcomes)


def exit_code_of(summary: Summary) -> int:
    """The one place where a run's exit code is decided: pessimistic, success comes last."""
    if summary.signal_number is not None:
        return 128 + summary.signal_number
    if summary.stopped or summary.report_failed or summary.count("failed"):
        return ExitCode.SUBJECT_FAILED
    return ExitCode.OK
