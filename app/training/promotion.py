"""Promotion of a trained network to a model: its place, and comparisons with the one before."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError
from app.data.cases import Case
from app.evaluation.scoring import VolumeScores
from app.inference.device import Machine, choose_device
from app.inference.loading import choose_refiner
from app.inference.models import Model
from app.inference.synthesizer import Synthesizer
from app.networks.enhancer import Enhancer
from app.networks.refiner import Refiner
from app.registry.checkpoints import load_refiner, save_network
from app.registry.lineage import ModelScores
from app.registry.manifest import MANIFEST, Entry, Manifest, change_spec, read_manifest, spec_as
from app.registry.spec import GeneratorSpec, ModelSpec, RefinerSpec
from app.training import validation
from app.training.checkpoint import State
from app.training.config import Recipe, recipe_from_json
from app.training.data.cache import CachedSubject, build_cache
from app.training.validation import SEGMENTATION_METRICS, SELECTION_METRICS, rounded, rounded_means, scores_of

log = logging.getLogger(__name__)
R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True)
class ExportRequest:
    """What is asked for of a run's result.

    Attributes:
        run: folder of the run; state: the checkpoint of it that is taken.
        weights, name: the folder that gets the model, and the model's name.
        data, cache: what the run was trained on.
        output: values of the recipe's section `output` that are to be others.
        cases, masks: complete subjects to score on, and their segmentations; none where nothing is scored.
        make_default, specialist_of, refines, force, device: as in `app.training.export.export_run`.
    """

    run: Path
    state: State
    weights: Path
    name: str
    data: Path
    cache: Path
    output: Mapping[str, Any] = field(default_factory=dict)
    cases: Sequence[Case] = ()
    masks: Mapping[str, Path] = field(default_factory=dict)
    make_default: bool = False
    specialist_of: str | None = None
    refines: str | None = None
    force: bool = False
    device: str = "auto"

    @property
    def torch_device(self) -> torch.device:
        """The device that scores."""
        return torch.device(choose_device(self.device, Machine.probe())[0])

    def recipe_of(self, kind: type[R]) -> R:
        """Give the run's recipe with the output that is asked for.

        Args:
            kind: its class.

        Raises:
            UsageError: a value cannot be.
        """
        recipe: Recipe = self.state.recipe
        if self.output:
            form = recipe.to_json()
            form["output"] |= self.output
            recipe = recipe_from_json(form, f"the recipe of {self.run}")
        assert isinstance(recipe, kind)
        return recipe


def check_kind(weights: Path, name: str, kind: str) -> None:
    """Refuse to put a model in the place of one that does something else.

    Raises:
        UsageError: there is one of that name.
    """
    entries = read_manifest(weights).entries if (weights / MANIFEST).exists() else {}
    if name in entries and entries[name].spec.kind != kind:
        raise UsageError(f"{name!r} of {weights} is a {entries[name].spec.kind}; give the {kind} another name.")


def check_slot(request: ExportRequest, targets: Sequence[Modality]) -> None:
    """Refuse what would leave sequences to nobody, and a specialist of what cannot have one.

    Args:
        targets: the sequences that the run's generator makes.

    Raises:
        UsageError: the default, or the only model, would not make every sequence; or one of this name makes a sequence
            that the run does not; or the request's host cannot leave it any.
    """
    weights, name, host_name = request.weights, request.name, request.specialist_of
    manifest = read_manifest(weights) if (weights / MANIFEST).exists() else None
    there = None if manifest is None else manifest.entries.get(name)
    before = there.spec.targets if there is not None and isinstance(there.spec, GeneratorSpec) else ()
    if lost := [m for m in before if m not in targets]:
        raise UsageError(f"{name!r} of {weights} makes {', '.join(lost)} and the run does not; give it another name.")
    if host_name is None:
        alone = request.make_default or manifest is None or manifest.default is None
        if len(targets) < len(MODALITIES) and alone:
            raise UsageError(
                f"the run makes {', '.join(targets)} only and cannot be the default; name the model that shall leave "
                "it to this one with --specialist-of."
            )
        return
    if len(targets) == len(MODALITIES):
        raise UsageError(_NO_SPECIALIST)
    host = read_manifest(weights).entry(host_name)
    fits = (
        isinstance(host.spec, GeneratorSpec) and host.spec.normalization == request.state.recipe.normalization.build()
    )
    if not fits or host.name == name or request.make_default:
        raise UsageError(
            f"{name!r} cannot be a specialist of {host.name!r}: name another model, one that sees scores as training "
            "does, and leave out --make-default."
        )


_NO_SPECIALIST = "a specialist makes some of the four sequences (data.targets); leave out --specialist-of."


def check_no_specialist(request: ExportRequest) -> None:
    """Refuse a specialist that makes no sequence by itself.

    Raises:
        UsageError: one is asked for.
    """
    if request.specialist_of is not None:
        raise UsageError(_NO_SPECIALIST)


def check_no_host(request: ExportRequest) -> None:
    """Refuse another model's T1c to what is no enhancer.

    Raises:
        UsageError: it is asked for.
    """
    if request.refines is not None:
        raise UsageError("an enhancer, and nothing else, is for another model's T1c: leave out --refines.")


def check_no_images(request: ExportRequest, reason: str = "a segmenter makes no images") -> None:
    """Refuse the options of models that complete exams.

    Args:
        reason: why it takes none, the beginning of the sentence.

    Raises:
        UsageError: one is given.
    """
    if request.output or request.make_default:
        raise UsageError(f"{reason}; leave out --contrast, --fusion, --flip-average, --views and --make-default.")


def replaced_by(
    weights: Path, name: str, make_default: bool, specialist_of: str | None = None
) -> list[tuple[Manifest, Entry]]:
    """List the models whose place the new one would take, at least in part.

    That of its name, the default if it shall be it, and who leaves it sequences if it shall be a specialist.
    """
    if not (weights / MANIFEST).exists():
        return []
    manifest = read_manifest(weights)
    names = dict.fromkeys([name, manifest.default if make_default else specialist_of])
    return [(manifest, manifest.entries[n]) for n in names if n is not None and n in manifest.entries]


def check_better(request: ExportRequest, scores: ModelScores, targets: Sequence[Modality]) -> None:
    """Refuse a generator that makes `targets` worse than one whose place it would take.

    That one counts as it is used by default: refined, and with its specialists. The new model keeps the specialists of
    the one of its name, and is compared by the sequences that they do not make.

    Raises:
        UsageError: it is worse.
    """
    for replaced in replaced_by(request.weights, request.name, request.make_default, request.specialist_of):
        _check_better_than(request, scores, replaced, targets)


def _check_better_than(
    request: ExportRequest, scores: ModelScores, replaced: tuple[Manifest, Entry], targets: Sequence[Modality]
) -> None:
    name, (manifest, entry) = request.name, replaced
    left = entry.spec.specialists if isinstance(entry.spec, GeneratorSpec) and entry.name == name else {}
    targets = [m for m in targets if m not in left] or targets
    specialists = {} if entry.name == name else manifest.specialists_of(entry)
    models = {m: specialists.get(m, entry) for m in targets}
    known = {m: _known_scores(manifest, choose_refiner(manifest, e) or e, m, scores) for m, e in models.items()}
    if any(row is None for row in known.values()):
        log.info("%s has no scores on these subjects yet; it is scored first.", entry.name)
        device = str(request.torch_device)
        model = Synthesizer(entry.name, weights=manifest.folder, device=device, specialists=entry.name != name).model
        rows = validation.score_missing_sequences(model, request.cases, request.masks, targets)
        known = {m: rounded_means([s for s in rows if s.modality == m]) for m in targets}
    before = _mean_over([row for row in known.values() if row is not None])
    check_not_worse(_mean_over([scores.by_target[m] for m in targets]), before, SELECTION_METRICS, entry.name)


def check_better_refiner(
    request: ExportRequest, scores: ModelScores, first: Entry, targets: Sequence[Modality]
) -> None:
    """Refuse a refiner that is worse than the one that its first stage has.

    Raises:
        UsageError: it is worse.
    """
    manifest = read_manifest(first.folder)
    if (before := manifest.entries.get(refiner_name(first) or "")) is None:
        return
    # What it does not refine, its first stage makes alone: with that the new one has been compared.
    common = [m for m in targets if m in load_refiner(before).targets]
    known = {m: _known_scores(manifest, before, m, scores) for m in common}
    if any(row is None for row in known.values()):
        opened = Synthesizer(first.name, weights=first.folder, device=request.device, refine=True)
        rows = validation.score_missing_sequences(opened.model, request.cases, request.masks, common)
        known = {m: rounded_means([s for s in rows if s.modality == m]) for m in common}
    new, old = ([scores.by_target[m] for m in common], [row for row in known.values() if row is not None])
    check_not_worse(_mean_over(new), _mean_over(old), SELECTION_METRICS, before.name)


def check_no_refiner_conflict(first: Entry, name: str) -> None:
    """Refuse a name under which another model's refiner, or that of several, would be overwritten.

    Raises:
        UsageError: a model other than `first` is refined by what has that name.
    """
    entries = read_manifest(first.folder).entries.values()
    if others := [e.name for e in entries if refiner_name(e) == name and e.name != first.name]:
        raise UsageError(f"{name!r} of {first.folder} refines {others[0]!r}; give the new one another name.")


def check_not_worse(now: Mapping[str, float], before: Mapping[str, float], metrics: Sequence[str], name: str) -> None:
    """Refuse a model that is worse by any of the metrics, or shares none of them.

    Raises:
        UsageError: it is worse, or cannot be compared.
    """
    both = [k for k in metrics if k in before and k in now]
    if not both:
        raise UsageError(f"{name!r} has no scores to compare with; --force replaces it.")
    behind = [k for k in both if now[k] < round(before[k], 6)]
    shown = {k: _against(k, now[k], before[k]) for k in both}
    if behind:
        rest = ", ".join(shown[k] for k in both if k not in behind)
        raise UsageError(
            f"the model is worse than {name!r}, which it would replace, in {', '.join(shown[k] for k in behind)}"
            f"{f' (not in {rest})' if rest else ''}; --force writes it."
        )
    log.info("Not worse than %s: %s", name, ", ".join(shown.values()))


def _against(metric: str, now: float, before: float) -> str:
    """Both values, with as many digits as a lineage keeps where four would not tell them apart."""
    digits = 6 if f"{now:.4f}" == f"{before:.4f}" and now != before else 4
    return f"{metric} {now:.{digits}f} (before {before:.{digits}f})"


def refiner_name(entry: Entry) -> str | None:
    """Give the name of a generator's refiner, if it has one."""
    return entry.spec.refiner if isinstance(entry.spec, GeneratorSpec) else None


def _known_scores(manifest: Manifest, entry: Entry, target: Modality, like: ModelScores) -> dict[str, float] | None:
    """A model's scores of one sequence, if they are known on the same subjects."""
    known = manifest.lineage.scores_of(entry.sha256)
    return known.by_target.get(target) if known is not None and known.subjects == like.subjects else None


def _mean_over(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the sequences of those scores that all of them have."""
    shared = [k for k in rows[0] if all(k in row for row in rows)]
    return rounded({k: sum(row[k] for row in rows) / len(rows) for k in shared})


def trained_subjects(request: ExportRequest) -> list[CachedSubject]:
    """Give the subjects that a run was trained on, of its cache.

    Raises:
        UsageError: the data lacks one of them.
    """
    subjects = {s.name: s for s in build_cache(request.data, request.cache, request.state.recipe.normalization.build())}
    if missing := [n for n in request.state.subjects if n not in subjects]:
        raise UsageError(
            f"{request.data} lacks {missing[0]}, which {request.run} was trained on; give the folder of that run."
        )
    return [subjects[n] for n in request.state.subjects]


def write_model(
    request: ExportRequest,
    spec: ModelSpec,
    scores: ModelScores | None,
    *,
    folder: Path | None = None,
    intensity: bytes | None = None,
    onnx: bytes | None = None,
    atlas: bytes | None = None,
    make_default: bool = False,
) -> Entry:
    """Write a run's averaged weights with their specification and the record of their training.

    Args:
        folder: gets the model; that of the request if not given.
        intensity, onnx, atlas, make_default: as `app.registry.checkpoints.save_network`.

    Raises:
        WeightsError: the folder cannot be made, or its manifest cannot be read.
        OutputError: it cannot be written to; it stays as it was.
    """
    state = request.state
    return save_network(
        folder or request.weights,
        request.name,
        spec,
        state.rounded_average,
        intensity=intensity,
        onnx=onnx,
        atlas=atlas,
        training=state.record(request.name, scores),
        ancestors=state.lineage,
        make_default=make_default,
    )


def promote_scored(
    request: ExportRequest,
    spec: ModelSpec,
    rows: Sequence[VolumeScores] | None,
    metrics: Sequence[str] = SEGMENTATION_METRICS,
    *,
    intensity: bytes | None = None,
    atlas: bytes | None = None,
) -> Entry:
    """Write a model, unless its scores are worse than those of the one of its name.

    Args:
        rows: its scores; None where it is not scored.
        metrics: what is compared, each the higher the better.
        intensity, atlas: as `app.registry.checkpoints.save_network`.

    Raises:
        UsageError: it is worse, or the one of its name has no scores on the same subjects.
    """
    scores = None if rows is None else scores_of(rows)
    replaced = [] if scores is None or request.force else replaced_by(request.weights, request.name, make_default=False)
    for manifest, entry in replaced:
        assert scores is not None
        before = manifest.lineage.scores_of(entry.sha256)
        if before is None or before.subjects != scores.subjects:
            raise UsageError(f"{request.name!r} has no scores on these subjects to compare with; --force replaces it.")
        check_not_worse(scores.mean, before.mean, metrics, request.name)
    return write_model(request, spec, scores, intensity=intensity, atlas=atlas)


def promote_refiner(
    request: ExportRequest,
    first: Entry,
    network: Refiner | Enhancer,
    spec: RefinerSpec,
    stage_one: Model | None,
) -> Entry:
    """Write a refiner and name it in its first stage's entry, unless it is worse.

    It is compared with the first stage alone, and with the refiner that this one has.

    Args:
        stage_one: the first stage alone, ready to run; None where nothing is scored.

    Raises:
        UsageError: it is worse.
    """
    check_no_refiner_conflict(first, request.name)
    scores, targets = None, network.targets
    if stage_one is not None:
        model = validation.candidate_refined_model(network, spec, stage_one)
        scores = scores_of(validation.score_missing_sequences(model, request.cases, request.masks, targets), targets)
        # What is known of the first stage is of its own volumes, not of its specialists'.
        known = None if stage_one.specialists else read_manifest(first.folder).lineage.scores_of(first.sha256)
        if targets == MODALITIES and known is not None and known.subjects == scores.subjects:
            unrefined = known.mean
        else:
            rows = validation.score_missing_sequences(stage_one, request.cases, request.masks, targets)
            unrefined = rounded_means(rows)
        scores = scores.model_copy(update={"unrefined": unrefined})
        if not request.force:
            check_not_worse(scores.mean, unrefined, SELECTION_METRICS, first.name)
            check_better_refiner(request, scores, first, targets)
    entry = write_model(request, spec, scores, folder=first.folder)
    change_spec(first, refiner=request.name, refine=request.make_default or spec_as(first, GeneratorSpec).refine)
    return entry
