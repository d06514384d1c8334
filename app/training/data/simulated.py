"""Simulated exams among the real ones that a run trains on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from app.core.errors import UsageError
from app.inference.simulation.exam_files import RECORD
from app.training.data.cache import CachedSubject, build_cache

if TYPE_CHECKING:
    from app.training.checkpoint import State
    from app.training.config import Recipe
    from app.training.distributed import Processes
    from app.training.tasks.base import Task

_ADVICE: Final = "give an output of `python -m app simulate` or `transplant`"


@dataclass(frozen=True)
class SimulatedExams:
    """Hold the simulated exams of a run.

    Attributes:
        subjects: those that are drawn from; none where none are given.
        names: of the exams.
        sources: names of the patients whose lesions and brains they have, and of those who taught what made them.
    """

    subjects: Sequence[CachedSubject] = ()
    names: Sequence[str] = ()
    sources: Sequence[str] = ()

    def note_in(self, state: State, resumed: bool, run: Path) -> None:
        """Name them in the state of a run.

        Args:
            resumed: whether the run has been trained before; it must then have been on the same.
            run: its folder, for messages.

        Raises:
            UsageError: it was trained on others.
        """
        if resumed and state.simulated != list(self.names):
            raise UsageError(f"{run} was trained on other exams of --simulated; resume with the same folder.")
        state.simulated, state.simulated_from = list(self.names), list(self.sources)


def check_simulated(folder: Path | None, recipe: Recipe, task: type[Task[Any]]) -> None:
    """Check that simulated exams are there where they are asked for, and that the task can learn from them.

    Args:
        folder: their folder; None where there is none.

    Raises:
        UsageError: one is given and not the other, the task cannot, or the folder has no record.
    """
    share = recipe.data.simulated_share
    if folder is None:
        if share > 0:
            raise UsageError("data.simulated_share needs simulated exams; name their folder with --simulated.")
        return
    if not task.takes_simulated:
        raise UsageError(f"the task {recipe.task} cannot learn from simulated exams; leave out --simulated.")
    if share == 0:
        raise UsageError("--simulated needs a share: --set data.simulated_share=0.25 draws a quarter of them.")
    if not (folder / RECORD).is_file():
        raise UsageError(f"--simulated {folder} has no {RECORD}; {_ADVICE}.")


def open_simulated(folder: Path | None, cache: Path, recipe: Recipe, group: Processes) -> SimulatedExams:
    """Prepare simulated exams like real ones; among several processes the first does, the others wait.

    Args:
        folder: that of `check_simulated`.
        cache: gets their arrays, in a folder of their own.

    Raises:
        UsageError: the record cannot be read, or lacks an exam of the folder.
    """
    if folder is None:
        return SimulatedExams()
    with group.first_alone() as chosen:
        exams = _opened(folder, cache, recipe) if chosen else None
    return exams or _opened(folder, cache, recipe)


def _opened(folder: Path, cache: Path, recipe: Recipe) -> SimulatedExams:
    try:
        text = (folder / RECORD).read_bytes()
        form = json.loads(text)
        exams = {str(exam["name"]): exam for exam in form["exams"]}
        sources = {str(exam[key]) for exam in exams.values() for key in ("lesion", "brain")}
        sources |= set(map(str, form["taught_by"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(f"{folder / RECORD} cannot be read ({type(error).__name__}); {_ADVICE}.") from None
    place = cache / f"simulated-{hashlib.sha256(text).hexdigest()[:8]}"
    subjects = build_cache(folder, place, recipe.normalization.build())
    if unknown := [s.name for s in subjects if s.name not in exams]:
        raise UsageError(f"{unknown[0]} of {folder} is not in {RECORD} there; {_ADVICE}.")
    marked = [replace(s, simulated=True) for s in subjects]
    return SimulatedExams(marked, [s.name for s in subjects], sorted(sources - {"atlas"}))
