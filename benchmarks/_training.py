"""What the benchmarks that train share: runs and scores that are not done again, and tables of differences."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from app.core.atomic_io import save_bytes
from app.evaluation.scoring import VolumeScores
from app.evaluation.statistics import compare
from app.inference.models import NetworkModel
from app.networks import new_generator
from app.preprocessing.target_intensity import IntensityPredictor
from app.registry.manifest import Entry
from app.training.checkpoint import LAST, State, load_state
from app.training.config import Recipe
from app.training.data.cache import build_cache
from app.training.fits.intensity import fit_intensity
from app.training.tasks.synthesis_recipe import SynthesisRecipe, generator_config, generator_spec
from app.training.trainer import TrainingPaths, train
from app.training.validation import candidate_model


def train_once(recipe: Recipe, paths: TrainingPaths, start: Entry | None = None) -> State | None:
    """Trains a run to the end of its schedule, by processor time, unless that is done; None when a signal ended it.

    Args:
        start: whose weights a new run begins with.
    """
    last = paths.run / LAST
    begun = last.exists()
    if not begun or not _is_done(load_state(last), recipe):
        first = None if begun else start
        outcome = train(recipe, paths, resume=begun, start=first, clock=time.process_time)
        if outcome.signal_number is not None:
            return None
    return load_state(last)


def _is_done(state: State, recipe: Recipe) -> bool:
    steps, minutes = recipe.schedule.steps, recipe.schedule.budget_minutes
    return 0 < steps <= state.step or 0 < minutes <= state.minutes


def generator_of(state: State, data: Path, cache: Path) -> NetworkModel:
    """The averaged network of a run, as the pipeline runs it, without the mirrored exam.

    Args:
        data, cache: of the run; the target's brightness is predicted from the subjects there.
    """
    recipe = state.recipe
    assert isinstance(recipe, SynthesisRecipe)
    network = new_generator(generator_config(recipe))
    state.load_into(network)
    subjects = build_cache(data, cache, recipe.normalization.build())
    predictor = IntensityPredictor.from_json(fit_intensity([s.intensities for s in subjects]))
    spec = generator_spec(recipe, generator_config(recipe), None).model_copy(update={"flip_average": False})
    model = candidate_model(network.eval(), spec, predictor, torch.device("cpu"))
    assert isinstance(model, NetworkModel)
    return model


def kept_scores(place: Path, score: Callable[[], Sequence[VolumeScores]]) -> list[VolumeScores]:
    """Scores, unless a file holds what was found before."""
    if not place.exists():
        found = [{"subject": r.subject, "modality": r.modality, "values": r.values} for r in score()]
        save_bytes(json.dumps(found).encode(), place)
    return [VolumeScores(**row) for row in json.loads(place.read_text())]


def difference_cells(rows: Sequence[VolumeScores], base: Sequence[VolumeScores], digits: Mapping[str, int]) -> str:
    """What rows have beyond others, for a table: per metric the mean difference and its 95 % interval.

    Args:
        digits: per metric, how many behind the point; one that is not in both stays empty.
    """
    each = compare(rows, base)
    cells = (
        f"{each[m]['difference']:+.{n}f} [{each[m]['low']:+.{n}f}, {each[m]['high']:+.{n}f}]" if m in each else ""
        for m, n in digits.items()
    )
    return " | ".join(cells)
