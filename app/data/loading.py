"""Decode the sequences of subjects, and warn of unusual ones."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping

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


def load_complete(cases: Iterable[Case]) -> Iterator[tuple[str, dict[Modality, Volume]]]:
    """Yield name and volumes of every complete readable subject; log the others by name."""
    seen: set[str] = set()
    for case in cases:
        if case.subject in seen:
            log.warning("A second %s is left out; give every subject a name of its own.", case.subject)
            continue
        seen.add(case.subject)
        try:
            volumes = _load_all_four(case)
        except CaseError as error:
            log.warning("%s is left out: %s", case.subject, error)
            continue
        for note in (note for m in MODALITIES for note in volumes[m].notes):
            log.warning("%s", note)
        yield case.subject, volumes


def _border_share(volume: Volume) -> float:
    faces = [np.take(volume.data, i, axis=axis) for axis in range(3) for i in (0, -1)]
    return sum(int(np.count_nonzero(f)) for f in faces) / sum(int(f.size) for f in faces)


def _load_all_four(case: Case) -> dict[Modality, Volume]:
    """Decode all sequences of a subject.

    Raises:
        CaseError: one lacks or cannot be read, their grids differ, or they show no common brain.
    """
    if reason := case.problem or next(iter([*case.runs.values(), *case.faults.values()]), None):
        raise CaseError(reason)
    if case.absent:
        raise CaseError(f"it lacks {', '.join(case.absent)}.")
    volumes = {m: load_volume(case.files[m]) for m in MODALITIES}
    first = volumes[MODALITIES[0]]
    if not all(first.grid.same_as(v.grid) for v in volumes.values()):
        raise CaseError("its sequences are on different grids.")
    if not vote_foreground({m: v.data for m, v in volumes.items()}).any():
        raise CaseError("its sequences show no common brain.")
    return volumes
