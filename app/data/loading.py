"""A subject's inputs, decoded, and what a user should know of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from app.core.config import OnError
from app.core.constants import MODALITIES, Modality
from app.core.errors import EmptyVolumeError, VolumeError
from app.data.cases import Case, Plan, plan
from app.data.nifti_reader import Volume, load_volume
from app.preprocessing.foreground import vote_foreground

log = logging.getLogger(__name__)


def load_inputs(case: Case, on_error: OnError, complete_all: bool = False) -> tuple[Case, Plan, dict[Modality, Volume]]:
    """Plans a subject and decodes its inputs; what decoding reveals is planned again.

    Returns:
        The case as now known, its plan (with the input_warnings on each file among its warnings), and the volumes.

    Raises:
        CaseError: nothing can be made under this policy.
    """
    volumes: dict[Modality, Volume] = {}
    while True:
        todo = plan(case, on_error, complete_all)
        if not todo.targets:
            return case, todo, {}
        pending = next((m for m in todo.inputs if m not in volumes), None)
        if pending is None:
            break
        try:
            volumes[pending] = load_volume(case.files[pending])
        except EmptyVolumeError as error:
            case = case.with_empty(pending, str(error))
        except VolumeError as error:
            case = case.with_fault(pending, str(error))
    volumes = {m: volumes[m] for m in todo.inputs}
    return case, todo, volumes


def input_warnings(volumes: Mapping[Modality, Volume]) -> list[str]:
    """What a user should know of inputs that can be used but are not what models were made for."""
    notes = [note for v in volumes.values() for note in v.notes]
    first = next(iter(volumes.values()))
    spacing = first.grid.spacing
    if not all(0.8 <= s <= 1.25 for s in spacing):
        notes.append(
            f"{first.grid.path} is {first.grid.describe()}; models are made for 1 mm, expect less of them here."
        )
    if all(_border_share(v) > 0.2 for v in volumes.values()):
        notes.append(f"{first.grid.path} has no dark border; models are made for skull-stripped brains.")
    return notes


def _border_share(volume: Volume) -> float:
    faces = [np.take(volume.data, i, axis=axis) for axis in range(3) for i in (0, -1)]
    return sum(int(np.count_nonzero(f)) for f in faces) / sum(int(f.size) for f in faces)


def load_complete(cases: Iterable[Case]) -> Iterator[tuple[str, dict[Modality, Volume]]]:
    """The volumes of every complete readable subject, one after another; the others are left out by name."""
    seen: set[str] = set()
    for case in cases:
        if case.subject in seen:
            log.warning("A second %s is left out; give every subject a name of its own.", case.subject)
            continue
        seen.add(case.subject)
        if reason := case.problem or next(iter(case.faults.values()), None):
            log.warning("%s is left out: %s", case.subject, reason)
            continue
        lacking = [m for m in MODALITIES if m not in case.files]
        if lacking:
            log.warning("%s is left out: it lacks %s.", case.subject, ", ".join(lacking))
            continue
        try:
            loaded = {m: load_volume(case.files[m]) for m in MODALITIES}
        except VolumeError as error:
            log.warning("%s is left out: %s", case.subject, error)
            continue
        first = loaded[MODALITIES[0]]
        if not all(first.grid.same_as(v.grid) for v in loaded.values()):
            log.warning("%s is left out: its sequences are on different grids.", case.subject)
            continue
        if not vote_foreground({m: v.data for m, v in loaded.items()}).any():
            log.warning("%s is left out: its sequences show no common brain.", case.subject)
            continue
        for note in (note for m in MODALITIES for note in loaded[m].notes):
            log.warning("%s", note)
        yield case.subject, loaded
