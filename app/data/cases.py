"""Describe one subject, the state of its files, and the plan for it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from app.core.config import OnError
from app.core.constants import MODALITIES, REFERENCE_OF, Modality
from app.core.errors import CaseError
from app.data.nifti_reader import Grid

#: Names of BraTS subjects, such as `BraTS-GLI-00001-000`: tumour type, patient and, since 2023, time point.
_TUMOUR_TYPE = re.compile(r"BraTS-([A-Z]+)-")
#: Names of exams in public collections that tell one visit of a patient from another.
_VISITS = (
    re.compile(r"(BraTS-[A-Za-z]+-\d+)-\d{3}"),
    re.compile(r"(sub-[A-Za-z0-9]+)_ses-.+"),  # BIDS
    re.compile(r"(Patient-\d+)_week-.+"),  # LUMIERE
    re.compile(r"(UCSF-PDGM-\d+)_FU\d+d"),
    re.compile(r"((?:UCSD-PTGBM|UPENN-GBM)-\d+)_\d+"),
    re.compile(r"(\d{6})[A-Z]"),  # UCSF-BMSR
    re.compile(r"(TCGA-\w{2}-\w{4})_\d{4}\.\d{2}\.\d{2}"),
)


@dataclass(frozen=True)
class FileReading:
    """Say what one image of a subject was taken for, and why.

    Attributes:
        sequence: None for an image that is passed over or not understood.
        guessed: whether a person should look at it.
    """

    path: Path
    sequence: Modality | None
    why: str
    guessed: bool = False


@dataclass(frozen=True)
class Case:
    """Describe one subject and the state of its files.

    Attributes:
        subject: the name that its outputs bear.
        files: one file per sequence.
        grids: headers of the usable files.
        faults: per sequence with an unusable file, the reason.
        empty: per sequence with an empty file (it counts as missing), the reason.
        problem: the reason why nothing can be done with this subject at all.
        doubts: a sentence for each image that may be a sequence, but is not understood.
        runs: per sequence with several files, what to do; it lacks nothing, but cannot be used.
        readings: what each image was taken for.
        notes: for the user, one sentence each.
        challenge_names: whether every file is named exactly as the challenge names it.
    """

    subject: str
    files: dict[Modality, Path]
    grids: dict[Modality, Grid] = field(default_factory=dict)
    faults: dict[Modality, str] = field(default_factory=dict)
    empty: dict[Modality, str] = field(default_factory=dict)
    problem: str | None = None
    doubts: tuple[str, ...] = ()
    runs: dict[Modality, str] = field(default_factory=dict)
    readings: tuple[FileReading, ...] = ()
    notes: tuple[str, ...] = ()
    challenge_names: bool = False

    @property
    def usable(self) -> tuple[Modality, ...]:
        """List sequences with a file that is neither faulty nor empty, in challenge order."""
        unusable = {*self.faults, *self.empty, *self.runs}
        return tuple(m for m in MODALITIES if m in self.files and m not in unusable)

    @property
    def absent(self) -> tuple[Modality, ...]:
        """List sequences without any file, in challenge order."""
        return tuple(m for m in MODALITIES if m not in self.files)

    def with_fault(self, modality: Modality, reason: str) -> Case:
        """Return the same subject with one more unusable sequence."""
        return replace(self, faults={**self.faults, modality: reason})

    def with_empty(self, modality: Modality, reason: str) -> Case:
        """Return the same subject with one more empty sequence."""
        return replace(self, empty={**self.empty, modality: reason})


@dataclass(frozen=True)
class Plan:
    """List the inputs and targets of one subject.

    Attributes:
        inputs: sequences to read, in challenge order.
        targets: sequences to make; none for a complete subject.
        fallback: whether an input is unusable and the others must do.
        warnings: one sentence each.
    """

    inputs: tuple[Modality, ...]
    targets: tuple[Modality, ...]
    fallback: bool = False
    warnings: tuple[str, ...] = ()

    def reference_of(self, target: Modality) -> Modality:
        """Return the input whose grid and header the synthesised `target` copies."""
        preferred = REFERENCE_OF[target]
        return preferred if preferred in self.inputs else self.inputs[0]


def tumour_type(subject: str) -> str:
    """Read `GLI`, `MET`, ... from a BraTS name such as `BraTS-GLI-00001-000`; else `unknown`."""
    match = _TUMOUR_TYPE.search(subject)
    return match[1] if match else "unknown"


def patient_of(subject: str) -> str:
    """Return the patient of an exam: a name of a public collection without its visit, else the name."""
    match = next((m for pattern in _VISITS if (m := pattern.fullmatch(subject))), None)
    return match[1] if match else subject


def also_in(subjects: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return the subjects whose patients are among the others', in their order."""
    patients = {patient_of(s) for s in others}
    return [s for s in subjects if patient_of(s) in patients]


def plan(case: Case, on_error: OnError = "fallback", complete_all: bool = False) -> Plan:
    """Decide the inputs and targets of a subject, for `check` and for the run.

    A sequence without a file is a target. Where all four have files, an empty one is; under `fallback`, an unusable one
    too. A sequence with several runs never is. Several targets need `complete_all`, or the challenge's exact names
    under `fallback`: there a missing output costs more than a surplus one.

    Raises:
        CaseError: nothing can be made under this policy.
    """
    if case.problem is not None:
        raise CaseError(case.problem)
    targets = _targets(case, complete_all)
    doubts = list(case.doubts) if targets else []
    reasons = [*case.runs.values(), *case.faults.values()]
    if (reasons or doubts) and on_error != "fallback":
        raise CaseError((*doubts, *reasons)[0])
    if case.runs and not targets:
        raise CaseError(next(iter(case.runs.values())))
    inputs = case.usable
    if not inputs:
        first, *others = [*reasons, *case.empty.values(), *doubts, f"{case.subject} has no image at all"]
        more = f" ({len(others) - 1} more files of it cannot be used either)" if len(others) > 1 else ""
        raise CaseError(f"{case.subject}: no sequence can be used: {first.rstrip('.')}{more}.")
    _check_one_grid(case)
    _check_several(case, targets, on_error, complete_all)
    fallback = bool(reasons) and bool(targets)
    warnings = [*case.empty.values(), *reasons, *doubts]
    if fallback or (len(targets) > 1 and not complete_all):
        left = f"made from what is left ({', '.join(inputs)}), less surely than from three"
        warnings.append(f"{case.subject}: {', '.join(targets)} {left} (--on-error fallback).")
    return Plan(inputs, targets, fallback, tuple(warnings))


def _targets(case: Case, complete_all: bool) -> tuple[Modality, ...]:
    """List the sequences to make."""
    if complete_all:
        return tuple(m for m in MODALITIES if m not in case.usable and m not in case.runs)
    return case.absent or tuple(m for m in MODALITIES if m in case.faults or m in case.empty)


def _check_several(case: Case, targets: tuple[Modality, ...], on_error: OnError, complete_all: bool) -> None:
    if len(targets) < 2 or complete_all or (on_error == "fallback" and case.challenge_names):
        return
    also = f" {case.notes[0]}" if case.notes else ""
    raise CaseError(f"{case.subject} lacks {', '.join(targets)}; pass --complete-all to make all of them.{also}")


def _check_one_grid(case: Case) -> None:
    first, *others = (case.grids[m] for m in case.usable)
    for grid in others:
        if not first.same_as(grid):
            raise CaseError(
                f"{case.subject}: its sequences lie on different grids ({first.difference(grid)}); "
                "register and resample them to one grid first."
            )
