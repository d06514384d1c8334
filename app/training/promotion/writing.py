"""Writing of a run's weights as a model, unless it is worse than the one before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.evaluation.scoring import VolumeScores
from app.inference.models import Model
from app.networks.enhancer import Enhancer
from app.networks.refiner import Refiner
from app.registry.checkpoints import save_network
from app.registry.lineage import ModelScores
from app.registry.manifest import Entry, change_spec, read_manifest, spec_as
from app.registry.spec import GeneratorSpec, ModelSpec, RefinerSpec
from app.training import validation
from app.training.data.cache import CachedSubject, build_cache
from app.training.promotion.comparison import (
    check_better_refiner,
    check_no_refiner_conflict,
    check_not_worse,
    replaced_by,
)
from app.training.promotion.request import ExportRequest
from app.training.validation import SEGMENTATION_METRICS, SELECTION_METRICS, rounded_means, scores_of


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
