"""The run folder: one run writes to it at a time, and only the same run resumes in it."""

from __future__ import annotations

import fcntl
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from app.core.errors import UsageError
from app.training.checkpoint import BEST, LAST, State, load_state
from app.training.config import Recipe
from app.training.distributed import Processes

log = logging.getLogger(__name__)

#: What a resumed run may do otherwise than before.
_CHANGEABLE = re.compile(
    r"note|output\.\w+|optimizer\.(learning_rate|clip_norm)|schedule\.(steps|budget_minutes|epoch_steps)"
)


@contextmanager
def alone(run: Path, group: Processes, resume: bool) -> Iterator[None]:
    """Lock a run folder against other runs.

    A run that is refused before its first file leaves no folder.

    Raises:
        UsageError: another one writes to it.
    """
    with ExitStack() as held:
        with group.first_alone() as chosen:
            # What cannot be resumed is no folder to make.
            if chosen and (run.is_dir() or not resume):
                run.mkdir(parents=True, exist_ok=True)
                lock = run / ".lock"
                stream = held.enter_context(lock.open("w"))
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise UsageError(f"another run writes to {run} at this moment; give another --run.") from None
                held.callback(_remove_if_alone, lock)
        yield


def _remove_if_alone(file: Path) -> None:
    """Removes a file and its folder where that holds nothing else."""
    if list(file.parent.iterdir()) == [file]:
        file.unlink()
        file.parent.rmdir()


def previous_state(run: Path, recipe: Recipe, processes: int, resume: bool) -> State | None:
    """Read where the run of a folder stands, with `recipe` from now on.

    None is a new run.

    Args:
        processes: how many take part now.

    Raises:
        UsageError: a new run in a folder that holds one; or nothing to resume, or a run that differs from this one in
            what decides its weights.
    """
    path = run / LAST
    if not resume:
        if path.exists():
            raise UsageError(f"{run} holds a run; add --resume to go on with it, or give another --run.")
        if (run / BEST).exists():
            raise UsageError(
                f"{run} holds {BEST} of an earlier run, which would be exported for this one; give another --run."
            )
        return None
    before = load_state(path)
    for key, (old, new) in _differences(before.recipe.to_json(), recipe.to_json()).items():
        if not _CHANGEABLE.fullmatch(key):
            raise UsageError(f"{path} was made with {key} = {old!r}, not {new!r}; resume with the same recipe.")
        log.info("The run goes on with %s = %s instead of %s.", key, new, old)
    if before.processes != processes:
        raise UsageError(f"{path} was made by {before.processes} processes, not {processes}; use as many.")
    before.recipe = recipe
    return before


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> dict[str, tuple[Any, Any]]:
    """List what two recipes' plain forms say otherwise: per key, with its section, the old and the new value."""
    changes: dict[str, tuple[Any, Any]] = {}
    for key in {**old, **new}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            changes |= _differences(a, b, f"{where}{key}.")
        elif a != b:
            changes[where + key] = (a, b)
    return changes
