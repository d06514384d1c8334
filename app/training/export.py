"""From a run to a model of a weights folder, if it is better than the one it replaces."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from app.core.config import FusionName
from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError
from app.data.cases import Case, also_in
from app.data.discovery import find_segmentations, scan
from app.inference.device import Machine, choose_device
from app.inference.synthesizer import Synthesizer
from app.networks import new_generator
from app.networks.architectures import EnhancerConfig, Segmenter2dConfig, Segmenter3dConfig
from app.networks.enhancer import Enhancer
from app.networks.refiner import Refiner
from app.networks.unet import Segmenter2d
from app.networks.unet3d import Segmenter3d
from app.preprocessing.target_intensity import IntensityPredictor
from app.registry.checkpoints import save_network
from app.registry.lineage import ModelScores, TrainingRecord
from app.registry.manifest import MANIFEST, Entry, change_spec, check_name, read_manifest, spec_as
from app.registry.onnx_export import check_onnx_packages, to_onnx
from app.registry.spec import GeneratorSpec, RefinerSpec, Segmenter2dSpec, Segmenter3dSpec
from app.training.checkpoint import BEST, LAST, State, load_state
from app.training.config import Recipe
from app.training.data.cache import NORMALIZATION, build_cache
from app.training.data.first_stage import StageOne
from app.training.intensity_fit import encode, fit_intensity, fit_intensity_conditioning
from app.training.promotion import (
    check_better,
    check_better_refiner,
    check_kind,
    check_no_refiner_conflict,
    check_not_worse,
    check_slot,
    refiner_name,
    replaced_by,
    rounded_means,
    scores_of,
)
from app.training.rules import check
from app.training.tasks.base import lineage_of
from app.training.tasks.refinement import refiner_config
from app.training.tasks.synthesis import BACKGROUND, generator_config
from app.training.validation import (
    SEGMENTATION_METRICS,
    SELECTION_METRICS,
    candidate_model,
    candidate_refined_model,
    generator_spec,
    refiner_spec,
    score_missing_sequences,
    score_segmenter2d,
    score_segmenter3d,
)

log = logging.getLogger(__name__)

#: What a manifest calls the result of each task of a recipe.
_KINDS = {"synthesis": "generator", "segmentation": "segmenter2d", "judging": "segmenter3d", "refinement": "refiner",
          "enhancement": "refiner"}  # fmt: skip


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
    make_default: bool = False,
    specialist_of: str | None = None,
    refines: str | None = None,
    force: bool = False,
    device: str = "auto",
) -> Entry:
    """Writes a run's averaged weights (the best validated, else the last) as safetensors and ONNX with their entry.

    Args:
        data, cache: what the run was trained on; the cache is `<run>/cache` if not given.
        score_on: complete subjects, none trained on; the model is scored there, and refused where it is worse than
            any model it replaces: the one of its name, and the default one if it shall be the default; a refiner
            where what it refines is worse than before.
        contrast: see `app.inference.postprocessing.stretch`; the recipe's if not given.
        fusion, flip_average: see `app.inference.view_fusion`; the recipe's if not given.
        make_default: make it the manifest's default; a refiner, its first stage's.
        specialist_of: a generator that leaves it the sequences that it makes from now on; it is refused where that one
            makes them better, alone or with the specialist that it has.
        refines: the generator whose T1c an enhancer is for; a run of that task needs it, no other takes it.
        force: do it all the same.

    Raises:
        UsageError: no run, a name that no model can have, or the model is worse, or it was trained on subjects of
            `score_on`; or one that does not make all sequences shall be the default, or one that does a specialist; or
            a contrast, a fusion or a flip average for a segmenter, which makes no images and is nobody's default; or a
            way to join views for a refiner, or one that the run's recipe rules out.
        WeightsError: `weights` cannot be read.
        OutputError: `weights` cannot be written to; it stays as it was, or has a specialist that nobody uses yet.
    """
    check_name(name)
    chosen_state = run / (BEST if (run / BEST).exists() else LAST)
    state = load_state(chosen_state)
    log.info("Takes %s, step %d.", chosen_state, state.step)
    check_kind(weights, name, _KINDS[state.recipe.task])
    check_slot(state, weights, name, make_default, specialist_of)
    if (state.recipe.task == "enhancement") != (refines is not None):
        raise UsageError("an enhancer, and nothing else, is for another model's T1c: "
                         f"{'leave out' if refines else 'name that model with'} --refines.")  # fmt: skip
    host = None if refines is None else _host(weights, refines)
    cases, masks = _judges(state, score_on, host)
    chosen = torch.device(choose_device(device, Machine.probe())[0])
    if not cases and not force:
        raise UsageError("a model is written only with scores; name complete subjects with --score-on, or add --force.")
    asked = {"contrast": contrast, "fusion": fusion, "flip_average": flip_average}
    changes: dict[str, Any] = {k: v for k, v in asked.items() if v is not None}
    if state.recipe.task in {"segmentation", "judging"}:
        if changes or make_default:
            raise UsageError(
                "a segmenter makes no images; leave out --contrast, --fusion, --flip-average and --make-default."
            )
        return _publish_segmenter(state, weights, name, cases, masks, chosen, force)
    if host is not None:
        if changes:
            raise UsageError("an enhancer joins no views and stretches nothing, its first stage does; leave out "
                             "--contrast, --fusion and --flip-average.")  # fmt: skip
        return _publish_enhancer(state, host, name, cases, masks, device, make_default, force)
    if state.recipe.task == "refinement" and changes.keys() - {"contrast"}:
        raise UsageError("a refiner joins no views, its first stage does; leave out --fusion and --flip-average.")
    state = replace(state, recipe=replace(state.recipe, output=replace(state.recipe.output, **changes)))
    check(state.recipe, f"the recipe of {run}")
    if state.recipe.task == "refinement":
        return _publish_refiner(state, weights, name, cases, masks, device, make_default, force)
    return _publish_generator(
        state, run, weights, name, data, cache, cases, masks, chosen, make_default=make_default,
        specialist_of=specialist_of, force=force,
    )  # fmt: skip


def _publish_generator(
    state: State,
    run: Path,
    weights: Path,
    name: str,
    data: Path,
    cache: Path | None,
    cases: list[Case],
    masks: Mapping[str, Path],
    device: torch.device,
    *,
    make_default: bool,
    specialist_of: str | None,
    force: bool,
) -> Entry:
    check_onnx_packages()
    subjects = {s.name: s for s in build_cache(data, cache or run / "cache")}
    if missing := [n for n in state.subjects if n not in subjects]:
        raise UsageError(f"{data} lacks {missing[0]}, which {run} was trained on; give the folder of that run.")
    intensity = fit_intensity([subjects[n].intensities for n in state.subjects])
    fitted = fit_intensity_conditioning([subjects[n] for n in state.subjects], state.recipe.network.intensity_prior)
    prior = None if fitted is None else fitted[0]
    config = generator_config(state.recipe)
    config = replace(config, confidence_scale=state.memory.get("lambda", config.confidence_scale))
    network = new_generator(config)
    network.load_state_dict(_as_loaded(state.average))
    network.requires_grad_(False).eval()
    scores: ModelScores | None = None
    if cases:
        views = state.recipe.data.views
        predictor = IntensityPredictor.from_json(intensity)
        model = candidate_model(network, state.recipe, views, predictor, device, prior)
        found = score_missing_sequences(model, cases, masks)
        scores = scores_of(found, model.targets)
        if not force:
            for replaced in replaced_by(weights, name, make_default, specialist_of):
                check_better(name, scores, replaced, cases, masks, str(device), model.targets)
    specialists: dict[Modality, str] = {}
    for _, old in replaced_by(weights, name, make_default=False):
        if refiner := refiner_name(old):
            log.warning("%s had a refiner, %s, of its old weights; train one of the new.", name, refiner)
        specialists = old.spec.specialists if isinstance(old.spec, GeneratorSpec) else {}
    spec = generator_spec(state.recipe, config, state.recipe.data.views, prior)
    entry = save_network(
        weights,
        name,
        spec.model_copy(update={"specialists": specialists}),
        _halved(state.average),
        intensity=encode(intensity),
        onnx=to_onnx(network, state.recipe.data.canvas),
        training=_record(state, name, scores),
        ancestors=state.lineage,
        make_default=make_default,
    )
    if specialist_of is not None:
        host = read_manifest(weights).entry(specialist_of)
        others = {**spec_as(host, GeneratorSpec).specialists, **dict.fromkeys(spec.targets, name)}
        change_spec(host, specialists=others)
    return entry


def _publish_refiner(
    state: State,
    weights: Path,
    name: str,
    cases: list[Case],
    masks: Mapping[str, Path],
    device: str,
    make_default: bool,
    force: bool,
) -> Entry:
    """Writes a refiner and names it in its first stage's entry, if neither that one alone nor its refiner is better.

    Args:
        make_default: the first stage is refined from now on unless it is run with `--no-refine`.
    """
    first = _first_stage(state, weights)
    check_no_refiner_conflict(first, name)
    network = Refiner(refiner_config(state.recipe))
    network.load_state_dict(_as_loaded(state.average))
    scores: ModelScores | None = None
    if cases:
        stage_one = StageOne(first, device).model
        found = score_missing_sequences(candidate_refined_model(network, state.recipe, stage_one), cases, masks)
        scores = scores_of(found, MODALITIES)
        known = read_manifest(weights).lineage.scores_of(first.sha256)
        if known is not None and known.subjects == scores.subjects:
            unrefined = known.mean
        else:
            unrefined = rounded_means(score_missing_sequences(stage_one, cases, masks))
        scores = scores.model_copy(update={"unrefined": unrefined})
        if not force:
            check_not_worse(scores.mean, unrefined, SELECTION_METRICS, first.name)
            check_better_refiner(scores, first, cases, masks, device, MODALITIES)
    spec = refiner_spec(state.recipe, refiner_config(state.recipe), state.first_stage)
    entry = save_network(
        weights, name, spec, _halved(state.average), training=_record(state, name, scores), ancestors=state.lineage
    )  # fmt: skip
    _let_refine(first, name, make_default)
    return entry


def _publish_enhancer(
    state: State,
    first: Entry,
    name: str,
    cases: list[Case],
    masks: Mapping[str, Path],
    device: str,
    make_default: bool,
    force: bool,
) -> Entry:
    """Writes an enhancer and names it in its first stage's entry, if that one's T1c is no better without or before it.

    Args:
        make_default: the first stage is refined from now on unless it is run with `--no-refine`.
    """
    check_no_refiner_conflict(first, name)
    recipe, config = state.recipe, EnhancerConfig(background=BACKGROUND)
    network = Enhancer(config)
    network.load_state_dict(_as_loaded(state.average))
    scores: ModelScores | None = None
    if cases:
        stage_one = Synthesizer(first.name, weights=first.folder, device=device, refine=False, specialists=False).model
        found = score_missing_sequences(
            candidate_refined_model(network, recipe, stage_one), cases, masks, network.makes
        )
        scores = scores_of(found, network.makes)
        unrefined = rounded_means(score_missing_sequences(stage_one, cases, masks, network.makes))
        scores = scores.model_copy(update={"unrefined": unrefined})
        if not force:
            check_not_worse(scores.mean, unrefined, SELECTION_METRICS, first.name)
            check_better_refiner(scores, first, cases, masks, device, network.makes)
    entry = save_network(
        first.folder, name, refiner_spec(recipe, config), _halved(state.average),
        training=_record(state, name, scores), ancestors=state.lineage,
    )  # fmt: skip
    _let_refine(first, name, make_default)
    return entry


def _let_refine(first: Entry, name: str, make_default: bool) -> None:
    """Names a refiner in its first stage's entry."""
    change_spec(first, refiner=name, refine=make_default or spec_as(first, GeneratorSpec).refine)


def _host(weights: Path, name: str) -> Entry:
    """The generator whose T1c an enhancer is for.

    Raises:
        UsageError: it makes none or leaves it to a specialist, sees other scores, or is refined by what refines other
            sequences too.
    """
    manifest = read_manifest(weights)
    host = manifest.entry(name)
    spec = host.spec
    if not isinstance(spec, GeneratorSpec) or spec.normalization != NORMALIZATION or "t1c" not in spec.targets:
        raise UsageError(f"{name!r} is no generator that makes T1c from scores as training sees them; name another.")
    if (specialist := spec.specialists.get("t1c")) is not None:
        raise UsageError(f"{name!r} leaves T1c to {specialist!r}; name that one with --refines.")
    before = manifest.entries.get(spec.refiner or "")
    if before is not None and not isinstance(spec_as(before, RefinerSpec).architecture, EnhancerConfig):
        raise UsageError(f"{name!r} has a refiner of other sequences too ({before.name}); name another generator.")
    return host


def _first_stage(state: State, weights: Path) -> Entry:
    """The generator that a run's refiner was trained for, as the weights folder has it."""
    wanted = state.first_stage
    assert wanted is not None
    entries = read_manifest(weights).entries if (weights / MANIFEST).exists() else {}
    if wanted.model not in entries or entries[wanted.model].sha256 != wanted.sha256:
        raise UsageError(
            f"the run refines model {wanted.model!r} (sha256 {wanted.sha256[:8]}), which {weights} lacks; "
            "export into the folder that has it."
        )
    first = entries[wanted.model]
    StageOne(first, "cpu").check_fusion(wanted)
    return first


def _judges(state: State, score_on: Path | None, host: Entry | None) -> tuple[list[Case], dict[str, Path]]:
    if score_on is None:
        return [], {}
    cases = [c for c in scan(score_on).cases if not c.absent]
    known = set(state.subjects) | state.lineage.subjects | (set() if host is None else lineage_of(host).subjects)
    if both := also_in([c.subject for c in cases], known):
        raise UsageError(f"{both[0]} of {score_on} was trained on; score on patients that the run has not seen.")
    if not cases:
        raise UsageError(f"{score_on} holds no complete subject to score on.")
    return cases, find_segmentations(score_on, cases)


def _publish_segmenter(
    state: State,
    weights: Path,
    name: str,
    cases: list[Case],
    masks: Mapping[str, Path],
    device: torch.device,
    force: bool,
) -> Entry:
    recipe = state.recipe
    network = Segmenter3d() if recipe.task == "judging" else Segmenter2d()
    network.load_state_dict(_as_loaded(state.average))
    scores: ModelScores | None = None
    if cases:
        network = network.to(device)
        scores = scores_of(
            score_segmenter3d(network, cases, masks, recipe, device)
            if isinstance(network, Segmenter3d)
            else score_segmenter2d(network, cases, masks, recipe.data, device)
        )
        for _, replaced in [] if force else replaced_by(weights, name, make_default=False):
            before = read_manifest(weights).lineage.scores_of(replaced.sha256)
            if before is None or before.subjects != scores.subjects:
                raise UsageError(f"{name!r} has no scores on these subjects to compare with; --force replaces it.")
            check_not_worse(scores.mean, before.mean, SEGMENTATION_METRICS, name)
    spec = _segmenter_spec(network, recipe)
    return save_network(
        weights, name, spec, _halved(state.average), training=_record(state, name, scores), ancestors=state.lineage
    )  # fmt: skip


def _segmenter_spec(network: Segmenter2d | Segmenter3d, recipe: Recipe) -> Segmenter2dSpec | Segmenter3dSpec:
    if isinstance(network, Segmenter3d):
        shape = Segmenter3dConfig(network.widths)
        return Segmenter3dSpec(architecture=shape, normalization=NORMALIZATION, window=recipe.data.patch)
    return Segmenter2dSpec(
        architecture=Segmenter2dConfig(network.widths), normalization=NORMALIZATION, canvas=recipe.data.canvas
    )


def _record(state: State, name: str, scores: ModelScores | None) -> TrainingRecord:
    """What the lineage keeps of a run."""
    return TrainingRecord(
        model=name,
        task=state.recipe.task,
        recipe=state.recipe.to_json(),
        subjects=tuple(state.subjects),
        seed=state.recipe.seed,
        steps=state.step,
        slices=state.step * state.recipe.schedule.batch_size * state.processes,
        minutes=round(state.minutes, 1),
        started_from=None if state.started_from is None else state.started_from.sha256,
        first_stage=None if state.first_stage is None else state.first_stage.sha256,
        teacher=None if state.teacher is None else state.teacher.sha256,
        scores=scores,
    )


def _halved(average: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Half the size; the rounding is below that of the bfloat16 in which most machines run it."""
    return {k: v.half() for k, v in average.items()}


def _as_loaded(average: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What a user's machine will load, so that what is scored is what is written."""
    return {k: v.float() for k, v in _halved(average).items()}
