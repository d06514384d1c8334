"""Decode the sequences of subjects, and warn of unusual ones."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from app.core.config import OnError
from app.core.constants import MODALITIES, Modality
from app.core.errors import CaseError, EmptyVolumeError, VolumeError
from app.data.cases import Case, Plan, plan
from app.data.nifti_reader import Volume, load_volume
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.skull import shows_skull

log = logging.getLogger(__name__)


def load_inputs(
    case: Case, on_error: OnError, complete_all: bool = False, complete_too: bool = False
) -> tuple[Case, Plan, dict[Modality, Volume]]:
    """Plan a subject and decode its inputs; plan again where decoding shows a fault.

    Args:
        complete_too: whether the volumes of a complete subject are wanted.

    Returns:
        The case as now known, its plan, and the volumes; none for a complete subject unless `complete_too`.

    Raises:
        CaseError: nothing can be made under this policy.
    """
    volumes: dict[Modality, Volume] = {}
    while True:
        todo = plan(case, on_error, complete_all)
        if not todo.targets and not complete_too:
            return case, todo, {}
        pending = next((m for m in todo.inputs if m not in volumes), None)
        if pending is None:
            break
        try:
            volumes[pending] = load_volume(case.files[pending], scanned=case.grids.get(pending))
        except EmptyVolumeError as error:
            case = case.with_empty(pending, str(error))
        except VolumeError as error:
            case = case.with_fault(pending, str(error))
    volumes = {m: volumes[m] for m in todo.inputs}
    return case, todo, volumes


def input_warnings(volumes: Mapping[Modality, Volume]) -> list[str]:
    """Warn of usable inputs that differ from the data that models were made for."""
    notes = [note for v in volumes.values() for note in v.notes]
    first = next(iter(volumes.values()))
    spacing = first.grid.spacing
    if not all(0.8 <= s <= 1.25 for s in spacing):
        notes.append(
            f"{first.grid.path} is {first.grid.describe()}; models are made for 1 mm, expect less of them here."
        )
    if all(_border_share(v) > 0.2 for v in volumes.values()):
        notes.append(f"{first.grid.path} has no dark border; models are made for skull-stripped brains.")
    elif shows_skull([v.data for v in volumes.values()], first.grid.lps_spacing):
        notes.append(f"{first.grid.path} is not skull-stripped; models are made for brains without skull and scalp.")
    return notes


def load_complete(
    cases: Iterable[Case], withheld: Modality | None = None
) -> Iterator[tuple[str, dict[Modality, Volume]]]:
    """Yield name and volumes of every complete readable subject; log the others by name.

    Args:
        withheld: a sequence that need not be there, and is not read where it is.
    """
    seen: set[str] = set()
    for case in cases:
        if case.subject in seen:
            log.warning("A second %s is left out; give every subject a name of its own.", case.subject)
            continue
        seen.add(case.subject)
        try:
            volumes = _load_all(case, needed_without(withheld))
        except CaseError as error:
            log.warning("%s is left out: %s", case.subject, error)
            continue
        for note in (note for v in volumes.values() for note in v.notes):
            log.warning("%s", note)
        yield case.subject, volumes


def _border_share(volume: Volume) -> float:
    faces = [np.take(volume.data, i, axis=axis) for axis in range(3) for i in (0, -1)]
    return sum(int(np.count_nonzero(f)) for f in faces) / sum(int(f.size) for f in faces)


def needed_without(withheld: Modality | None) -> tuple[Modality, ...]:
    """List the sequences that a subject needs where one is withheld, in challenge order."""
    return tuple(m for m in MODALITIES if m != withheld)


def _load_all(case: Case, needed: Sequence[Modality]) -> dict[Modality, Volume]:
    """Decode the needed sequences of a subject.

    Raises:
        CaseError: one lacks or cannot be read, their grids differ, or they show no common brain.
    """
    troubles = [reasons[m] for reasons in (case.runs, case.faults) for m in needed if m in reasons]
    if reason := case.problem or next(iter(troubles), None):
        raise CaseError(reason)
    if lacking := [m for m in case.absent if m in needed]:
        raise CaseError(f"it lacks {', '.join(lacking)}.")
    volumes = {m: load_volume(case.files[m]) for m in needed}
    first = next(iter(volumes.values()))
    if not all(first.grid.same_as(v.grid) for v in volumes.values()):
        raise CaseError("its sequences are on different grids.")
    if not vote_foreground({m: v.data for m, v in volumes.items()}).any():
        raise CaseError("its sequences show no common brain.")
    return volumes
