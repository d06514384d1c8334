"""New scores of a model that is there: after a change in how models are run, the lineage tells what they do now."""

from __future__ import annotations

import logging
from pathlib import Path

from app.core.config import ModelOptions, RuntimeOptions
from app.core.errors import UsageError
from app.data.segmentations import find_segmentations
from app.inference.device import Machine, choose_runtime
from app.inference.loading import choose_refiner, open_model, open_network
from app.registry.lineage import ModelScores
from app.registry.manifest import read_manifest, spec_as, write_entry
from app.registry.spec import GeneratorSpec
from app.training.promotion.request import scoring_cases
from app.training.validation import rounded_means, score_missing_sequences, scores_of

log = logging.getLogger(__name__)


def rescore(weights: Path, name: str, score_on: Path, device: str = "auto") -> ModelScores:
    """Score a generator as it runs by default, its specialists left out, and write that into the folder's lineage.

    Where it is refined by default, the scores are its refiner's, as `export` writes them.

    Args:
        score_on: complete subjects that none of its trainings has seen.

    Raises:
        UsageError: nothing is known of its training, or `score_on` has no complete subject, or one that taught it.
        WeightsError: the folder or the model cannot be read, or the model is no generator.
        OutputError: the folder cannot be written to; it stays as it was.
    """
    manifest = read_manifest(weights)
    entry = manifest.entry(name)
    spec_as(entry, GeneratorSpec)
    refiner = choose_refiner(manifest, entry)
    last = refiner or entry
    record = manifest.lineage.trainings.get(last.sha256)
    if record is None:
        raise UsageError(f"{weights} does not know how {last.name!r} was trained; export it from its run, with scores.")
    cases = scoring_cases(score_on, manifest.lineage.ancestry([entry.sha256, last.sha256]).subjects)
    masks = find_segmentations(score_on, cases)
    # As a candidate is scored: in eight bits it would be another comparison.
    precision = choose_runtime({"torch"}, Machine.probe(), RuntimeOptions(device)).precision
    runtime = RuntimeOptions(device, precision=precision)
    options = ModelOptions(model=name, specialists=False)
    model = open_model(manifest, options, runtime)
    targets = [m for m in model.targets if model.refiner is None or m in model.refiner.targets]
    scores = scores_of(score_missing_sequences(model, cases, masks, targets), targets)
    if refiner is not None:
        alone = open_network(entry, None, options, runtime)
        unrefined = rounded_means(score_missing_sequences(alone, cases, masks, targets))
        scores = scores.model_copy(update={"unrefined": unrefined})
    files = {role: weights / file.path for role, file in last.files.items()}
    write_entry(weights, last.name, last.spec, files, training=record.model_copy(update={"scores": scores}))
    log.info("%s has its new scores in %s.", last.name, weights)
    return scores
