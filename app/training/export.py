"""Export of a run as a model of a weights folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from app.core.config import FusionName
from app.core.constants import View
from app.core.errors import UsageError
from app.data.segmentations import find_segmentations
from app.registry.manifest import MANIFEST, Entry, check_name, read_manifest
from app.registry.spec import GeneratorSpec
from app.training.checkpoint import BEST, LAST, State, load_state
from app.training.fits.int8_ranges import calibrate, can_be_measured
from app.training.promotion.request import ExportRequest, check_kind, scoring_cases
from app.training.tasks.base import Task, lineage_of, task_of

log = logging.getLogger(__name__)


def export_run(
    run: Path,
    weights: Path,
    name: str,
    *,
    data: Path,
    cache: Path | None = None,
    score_on: Path | None = None,
    start_share: float = 0.0,
    contrast: float | None = None,
    highlights: float | None = None,
    detail: float | None = None,
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
        start_share: of the model that the run began with, of which `weights` still holds the weights: as much
            of each weight is that model's. Such means keep more of what a model did on images of other kinds. Source:
            WiSE-FT (Wortsman et al., CVPR 2022).
        contrast: see `app.inference.postprocessing.stretch`; the recipe's if not given.
        highlights: factor on what is brighter than the median (`app.inference.postprocessing.lift_highlights`); the
            recipe's if not given.
        detail: factor on the fine detail of what it makes (`app.inference.fine_detail`); the recipe's if not given.
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
    if start_share > 0:
        state = _mixed(task, state, weights, start_share)
    output = {
        "contrast": contrast,
        "highlights": highlights,
        "detail": detail,
        "fusion": fusion,
        "flip_average": flip_average,
        "views": views and list(views),
    }
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
    hosts = task.export_hosts(request)
    known = set(state.seen).union(state.lineage.subjects, *(lineage_of(host).subjects for host in hosts))
    cases = [] if score_on is None else scoring_cases(score_on, known)
    if not cases and not force:
        raise UsageError("a model is written only with scores; name complete subjects with --score-on, or add --force.")
    masks = find_segmentations(score_on, cases) if score_on is not None else {}
    before = read_manifest(weights).entries.get(name) if (weights / MANIFEST).exists() else None
    entry = task.export(replace(request, cases=cases, masks=masks))
    if before is not None:
        _say_what_is_lost(before, entry)
    return calibrate(weights, name, data, state.subjects) if can_be_measured(entry) else entry


def _say_what_is_lost(before: Entry, entry: Entry) -> None:
    """Warn of what belonged to the weights before, and does not come back by itself."""
    refiner = before.spec.refiner if isinstance(before.spec, GeneratorSpec) else None
    if refiner is not None and isinstance(entry.spec, GeneratorSpec) and entry.spec.refiner is None:
        log.warning("%s is no longer followed by %s: export that one anew behind it.", entry.name, refiner)
    if "quality" in before.files and "quality" not in entry.files:
        log.warning("%s no longer tells what is expected of its images: fit that anew.", entry.name)


def _mixed(task: type[Task[Any]], state: State, weights: Path, share: float) -> State:
    """Mix a run's averaged weights with those that it began with; what is new, such as a head, stays as it is.

    Raises:
        UsageError: it began with none, they are of another shape, or the folder does not hold them.
    """
    start = state.started_from
    if start is None:
        raise UsageError("the run began with random weights (no train --start); leave out --start-share.")
    there = read_manifest(weights).entries.values() if (weights / MANIFEST).exists() else ()
    entry = next((e for e in there if "torch" in e.files and e.sha256 == start.sha256), None)
    if entry is None:
        raise UsageError(
            f"{weights} does not hold the weights of {start.name!r} that the run began with; name the folder that does "
            "with --weights, or leave out --start-share."
        )
    before = task.read_weights(entry).state_dict()
    if other := [k for k, v in before.items() if k in state.average and v.shape != state.average[k].shape]:
        raise UsageError(f"{start.name!r} has another shape than the run ({other[0]}); leave out --start-share.")
    average = {
        k: share * before[k].float() + (1 - share) * v.float() if k in before else v for k, v in state.average.items()
    }
    return replace(state, average=average, start_share=share)
