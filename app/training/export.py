"""Export of a run as a model of a weights folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from app.core.config import FusionName
from app.core.constants import View
from app.core.errors import UsageError
from app.data.cases import Case, also_in
from app.data.discovery import scan
from app.data.segmentations import find_segmentations
from app.registry.manifest import Entry, check_name
from app.training.checkpoint import BEST, LAST, State, load_state
from app.training.promotion.request import ExportRequest, check_kind
from app.training.tasks.base import lineage_of, task_of

log = logging.getLogger(__name__)


def export_run(
    run: Path,
    weights: Path,
    name: str,
    *,
    data: Path,
    cache: Path | None = None,
    score_on: Path | None = None,
    contrast: float | None = None,
    fusion: FusionName | None = None,
    flip_average: bool | None = None,
    views: Sequence[View] | None = None,
    make_default: bool = False,
    specialist_of: str | None = None,
    refines: str | None = None,
    force: bool = False,
    device: str = "auto",
) -> Entry:
    """Write a run's averaged weights (the best validated, else the last) as a model.

    Args:
        data, cache: what the run was trained on; the cache is `<run>/cache` if not given.
        score_on: complete subjects, none trained on; the model is scored there, and refused where it is worse than
            any model it replaces: the one of its name, and the default one if it shall be the default; a refiner
            where what it refines is worse than before.
        contrast: see `app.inference.postprocessing.stretch`; the recipe's if not given.
        fusion, flip_average: see `app.inference.slicewise.view_fusion`; the recipe's if not given.
        views: those of the run's views that the model is run on; the recipe's if not given.
        make_default: make it the manifest's default; a refiner, its first stage's.
        specialist_of: a generator that leaves it the sequences that it makes from now on; it is refused where that one
            makes them better, alone or with the specialist that it has.
        refines: the generator whose T1c an enhancer is for; a run of that task needs it, no other takes it.
        force: do it all the same.

    Raises:
        UsageError: no run, a name that no model can have, or the model is worse, or it was trained on subjects of
            `score_on`; or an option that is not for what the run trained, or that the run's recipe rules out; or one
            that does not make all sequences shall be the default, or one that does a specialist.
        WeightsError: `weights` cannot be read.
        OutputError: `weights` cannot be written to; it stays as it was, or has a specialist that nobody uses yet.
    """
    check_name(name)
    checkpoint = run / (BEST if (run / BEST).exists() else LAST)
    state = load_state(checkpoint)
    log.info("Takes %s, step %d.", checkpoint, state.step)
    task = task_of(state.recipe)
    check_kind(weights, name, task.kind)
    output = {"contrast": contrast, "fusion": fusion, "flip_average": flip_average, "views": views and list(views)}
    request = ExportRequest(
        run,
        state,
        weights,
        name,
        data,
        cache or run / "cache",
        output={key: value for key, value in output.items() if value is not None},
        make_default=make_default,
        specialist_of=specialist_of,
        refines=refines,
        force=force,
        device=device,
    )
    task.check_export(request)
    cases = [] if score_on is None else _scoring_cases(state, score_on, task.export_hosts(request))
    if not cases and not force:
        raise UsageError("a model is written only with scores; name complete subjects with --score-on, or add --force.")
    masks = find_segmentations(score_on, cases) if score_on is not None else {}
    return task.export(replace(request, cases=cases, masks=masks))


def _scoring_cases(state: State, score_on: Path, hosts: Sequence[Entry]) -> list[Case]:
    """The complete subjects of a folder, none of whom taught the run, what it was made from, or the hosts."""
    cases = [c for c in scan(score_on).cases if not c.absent]
    known = set(state.seen).union(state.lineage.subjects, *(lineage_of(host).subjects for host in hosts))
    if both := also_in([c.subject for c in cases], known):
        raise UsageError(f"{both[0]} of {score_on} was trained on; score on patients that the run has not seen.")
    if not cases:
        raise UsageError(f"{score_on} holds no complete subject to score on.")
    return cases
