"""Splits of subjects into those that are trained on and those that validate.

A patient's exams stay together.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.data.cases import Case, also_in
from app.data.discovery import scan
from app.data.segmentations import find_segmentations
from app.training.checkpoint import State
from app.training.config import ScheduleRecipe
from app.training.data.cache import CachedSubject

log = logging.getLogger(__name__)


def split(subjects: Sequence[CachedSubject], held_out: int, seed: int) -> tuple[list[CachedSubject], list[str]]:
    """Split subjects by the seed: those to train on, and the names of the others.

    Args:
        held_out: how many to keep; further exams of their patients are kept as well (`app.data.cases.patient_of`).

    Raises:
        UsageError: fewer than two remain to train on.
    """
    names = sorted(s.name for s in subjects)
    drawn = np.random.default_rng(seed).choice(names, min(held_out, len(names)), replace=False).tolist()
    kept = also_in(names, drawn)
    if len(names) - max(held_out, len(kept)) < 2:
        raise UsageError(f"data.held_out = {held_out} leaves fewer than two of {len(names)} subjects to train on.")
    return [s for s in subjects if s.name not in kept], kept


def labelled_subjects(subjects: Sequence[CachedSubject]) -> list[CachedSubject]:
    """Choose the subjects with a segmentation.

    Raises:
        UsageError: they are fewer than two.
    """
    labelled = [s for s in subjects if s.labelled]
    if len(labelled) < 2:
        raise UsageError("fewer than two subjects have a segmentation; the task needs more.")
    return labelled


def validation_cases(
    data: Path, elsewhere: Path | None, schedule: ScheduleRecipe, state: State, *, say: bool = True
) -> tuple[list[Case], dict[str, Path]]:
    """Choose the complete subjects to validate on, with their segmentations.

    Args:
        data: what the run is trained on, of which `state.held_out` is kept.
        elsewhere: a folder of subjects to validate on instead.
        state: where the run stands; what it was validated on before it must be validated on again.
        say: warn where there are none.

    Raises:
        UsageError: the run, or the model that it starts from, has learnt from one of them; or `elsewhere` holds none.
    """
    folder = elsewhere or data
    # A thousand subjects' headers are not read where none of them is held out.
    wanted = scan(folder).cases if elsewhere or state.held_out else ()
    candidates = [c for c in wanted if elsewhere or c.subject in state.held_out]
    if both := also_in([c.subject for c in candidates], state.seen):
        raise UsageError(f"{both[0]} of {folder} is trained on; validate on patients that the run does not see.")
    origins = [one.sha256 for one in (state.started_from, state.first_stage) if one is not None]
    if both := also_in([c.subject for c in candidates], state.lineage.ancestry(origins).subjects):
        raise UsageError(
            f"{both[0]} of {folder} taught the model that the run starts from; validate on patients new to both "
            "(--validation, or the seed and data.held_out of that one)."
        )
    cases = [c for c in candidates if len(c.usable) == len(MODALITIES)][: schedule.validation_subjects]
    if elsewhere and not cases:
        raise UsageError(f"{folder} holds no complete subject to validate on.")
    if not cases and say and schedule.validate_every > 0:
        log.warning("No subject is held out (--set data.held_out=N) or named with --validation: the run is not "
                    "validated, and its last checkpoint is what is exported.")  # fmt: skip
    if state.validated is not None and state.validated != [c.subject for c in cases]:
        raise UsageError(
            f"the run was validated on other subjects ({', '.join(state.validated)}), of which its best checkpoint is; "
            "resume with the same --validation."
        )
    return cases, find_segmentations(folder, cases) if cases else {}
