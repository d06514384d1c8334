"""Record what became of each output, of each subject and of a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

from app.core.constants import Content, Modality
from app.core.errors import ExitCode

Status = Literal["made", "kept", "complete", "failed"]
STATUSES: tuple[Status, ...] = ("made", "kept", "complete", "failed")


@dataclass(frozen=True)
class Provenance:
    """Name the model and the way in which one sequence was made.

    Attributes:
        reference: the input whose geometry, header and number type the output has.
        model: the model's name, with its refiner's.
        weights_sha256, refiner_sha256: checksums; None without a refiner.
        model_sha256: fingerprint of all its files and of its refiner's; empty in records of version 0.1.0.
        fusion: how the views became one volume, such as `mean+flip`; None for a regression.
        device: where the network ran.
        confidence: path of the confidence map; None where there is none.
        expected: what it is expected to be worth (`app.preprocessing.expected_quality`); None where nothing tells.
    """

    reference: Modality
    model: str
    weights_sha256: str
    refiner_sha256: str | None
    fusion: str | None
    device: str
    confidence: str | None = None
    model_sha256: str = ""
    expected: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Give the keys of the run record; `confidence` and `expected` only where there are such."""
        form = asdict(self)
        for key in ("confidence", "expected"):
            if form[key] is None:
                del form[key]
        return form

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> Provenance:
        """Read an output of a run record; `joined` is the old name of `fusion`.

        Raises:
            KeyError: a part is missing.
        """
        return cls(
            reference=form["reference"],
            model=form["model"],
            weights_sha256=form["weights_sha256"],
            refiner_sha256=form.get("refiner_sha256"),
            fusion=form.get("fusion", form.get("joined")),
            device=form["device"],
            confidence=form.get("confidence"),
            model_sha256=form.get("model_sha256", ""),
            expected=form.get("expected"),
        )


@dataclass(frozen=True)
class OutputRecord:
    """Describe one image on disk.

    Attributes:
        target: the sequence, or `seg`.
        path, sha256: of its file.
        provenance: how it was made; None where only its header can tell.
        origin: what the header of a kept output says of its making; None for one that this run made.
        picture, view: paths of what was drawn beside it; None where the run's page draws it.
    """

    target: Content
    path: str
    sha256: str
    provenance: Provenance | None = None
    origin: str | None = None
    picture: str | None = None
    view: str | None = None

    @property
    def model(self) -> str | None:
        """Name the model that made it; None where no record says so."""
        return None if self.provenance is None else self.provenance.model

    def to_json(self) -> dict[str, Any]:
        """Give the keys of the run record."""
        form: dict[str, Any] = {"target": self.target, "path": self.path, "sha256": self.sha256}
        if self.provenance is not None:
            form |= self.provenance.to_json()
        more = {"origin": self.origin, "picture": self.picture, "view": self.view}
        return form | {name: text for name, text in more.items() if text is not None}

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> OutputRecord:
        """Read an output of a run record.

        Raises:
            KeyError: a part is missing.
            TypeError: it is no mapping.
        """
        provenance = Provenance.from_json(form) if "model" in form else None
        return cls(form["target"], form["path"], form["sha256"], provenance, form.get("origin"),
                   form.get("picture"), form.get("view"))  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """Say what became of one subject.

    Attributes:
        status: `made` (now), `kept` (a good output was there), `complete` (nothing lacked), `failed`.
        inputs: the file of each sequence that was read.
        input_sha256: checksums of the files that the outputs were made from, as far as they are known.
        lacked: sequences to make.
        error: why it failed.
        seconds, stages: of work on it, in all and per stage (read, network, write). Subjects overlap: a run takes less
            than the sum.
    """

    subject: str
    status: Status
    inputs: Mapping[Modality, str] = field(default_factory=dict)
    lacked: tuple[Modality, ...] = ()
    outputs: tuple[OutputRecord, ...] = ()
    warnings: tuple[str, ...] = ()
    error: str | None = None
    seconds: float = 0.0
    stages: Mapping[str, float] = field(default_factory=dict)
    input_sha256: Mapping[Modality, str] = field(default_factory=dict)

    @property
    def checksums(self) -> frozenset[str]:
        """Collect the SHA-256 of every output."""
        return frozenset(o.sha256 for o in self.outputs)

    def sentence(self) -> str:
        """Say it in one line for a person."""
        if self.status == "complete":
            return f"{self.subject}: has all four sequences, passed over"
        if self.status == "failed":
            return f"{self.subject}: FAILED: {self.error}"
        targets = ", ".join(o.target for o in self.outputs)
        if self.status == "kept":
            return f"{self.subject}: {targets} is there already, kept (--overwrite makes it again)"
        models = ", ".join(dict.fromkeys(str(o.model) for o in self.outputs))
        return f"{self.subject}: {targets} made from {', '.join(self.inputs)} in {self.seconds:.1f} s ({models})"

    def to_json(self) -> dict[str, Any]:
        """Give the keys of the run record."""
        return {
            "subject": self.subject,
            "status": self.status,
            "inputs": dict(self.inputs),
            "input_sha256": dict(self.input_sha256),
            "lacked": list(self.lacked),
            "outputs": [o.to_json() for o in self.outputs],
            "warnings": list(self.warnings),
            "error": self.error,
            "seconds": self.seconds,
            "stages": dict(self.stages),
        }

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> Outcome:
        """Read a subject of a run record, of this version or an earlier one.

        Raises:
            KeyError: a part is missing.
            TypeError, AttributeError, ValueError: a part is of another type, or the status is unknown.
        """
        if form["status"] not in STATUSES:
            raise ValueError(f"unknown status {form['status']!r}")
        return cls(
            subject=form["subject"],
            status=cast(Status, form["status"]),
            inputs=dict(form.get("inputs", {})),
            lacked=tuple(form.get("lacked", ())),
            outputs=tuple(map(OutputRecord.from_json, form["outputs"])),
            warnings=tuple(form.get("warnings", ())),
            error=form.get("error"),
            seconds=float(form.get("seconds", 0.0)),
            stages=dict(form.get("stages", {})),
            input_sha256=dict(form.get("input_sha256", {})),
        )


@dataclass
class Summary:
    """Collect the outcomes of a whole run.

    Attributes:
        notes: what finding the subjects showed.
        signal_number: the signal that ended the run; None without one.
        stopped: whether a failure ended the run (`--on-error stop`).
        report_failed: whether the record, the page or the trace could not be written.
    """

    outcomes: list[Outcome]
    notes: tuple[str, ...]
    signal_number: int | None = None
    stopped: bool = False
    report_failed: bool = False

    def count(self, status: Status) -> int:
        """Count the subjects that ended so."""
        return sum(o.status == status for o in self.outcomes)


def exit_code_of(summary: Summary) -> int:
    """Decide a run's exit code, in this one place: pessimistic, success comes last."""
    if summary.signal_number is not None:
        return 128 + summary.signal_number
    if summary.stopped or summary.report_failed or summary.count("failed"):
        return ExitCode.SUBJECT_FAILED
    return ExitCode.OK
