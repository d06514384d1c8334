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
_BRATS_EXAM = re.compile(r"(BraTS-[A-Za-z]+-\d+)-\d{3}")


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
    """

    subject: str
    files: dict[Modality, Path]
    grids: dict[Modality, Grid] = field(default_factory=dict)
    faults: dict[Modality, str] = field(default_factory=dict)
    empty: dict[Modality, str] = field(default_factory=dict)
    problem: str | None = None

    @property
    def usable(self) -> tuple[Modality, ...]:
        """List sequences with a file that is neither faulty nor empty, in challenge order."""
        return tuple(m for m in MODALITIES if m in self.files and m not in self.faults and m not in self.empty)

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
    """Return the patient of an exam: a BraTS name without its time point (`-001`), else the name."""
    match = _BRATS_EXAM.fullmatch(subject)
    return match[1] if match else subject


def also_in(subjects: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return the subjects whose patients are among the others', in their order."""
    patients = {patient_of(s) for s in others}
    return [s for s in subjects if patient_of(s) in patients]


def plan(case: Case, on_error: OnError = "fallback", complete_all: bool = False) -> Plan:
    """Decide the inputs and targets of a subject, for `check` and for the run.

    A sequence without a file is a target. Where all four have files, an empty one is; under `fallback`, an unusable one
    too. Several targets need `complete_all` or `fallback`: there a missing output costs more than a surplus one.

    Raises:
        CaseError: nothing can be made under this policy.
    """
    if case.problem is not None:
        raise CaseError(case.problem)
    reasons = list(case.faults.values())
    if reasons and on_error != "fallback":
        raise CaseError(reasons[0])
    inputs = case.usable
    if not inputs:
        first, *others = [*reasons, *case.empty.values()]
        more = f" ({len(others)} more files of it cannot be used either)" if others else ""
        raise CaseError(f"{case.subject}: no sequence can be used: {first.rstrip('.')}{more}.")
    _check_one_grid(case)
    unusable = tuple(m for m in MODALITIES if m in case.files and m not in inputs)
    targets = case.absent or unusable
    if complete_all:
        targets = tuple(m for m in MODALITIES if m not in inputs)
    fallback, several = bool(reasons) and bool(targets), len(targets) > 1 and not complete_all
    if several and on_error != "fallback":
        raise CaseError(f"{case.subject} lacks {', '.join(targets)}; pass --complete-all to make all of them.")
    warnings = [*case.empty.values(), *reasons]
    if fallback or several:
        left = f"made from what is left ({', '.join(inputs)}), less surely than from three"
        warnings.append(f"{case.subject}: {', '.join(targets)} {left} (--on-error fallback).")
    return Plan(inputs, targets, fallback, tuple(warnings))


def _check_one_grid(case: Case) -> None:
    first, *others = (case.grids[m] for m in case.usable)
    for grid in others:
        if not first.same_as(grid):
            raise CaseError(
                f"{case.subject}: its sequences lie on different grids ({first.difference(grid)}); "
                "register and resample them to one grid first."
            )
