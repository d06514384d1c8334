"""What a change of the training gives a trained generator, trained on with it for equal processor time.

Usage: `python -m benchmarks further --data TRAIN --validation DIR [DIR ...] --out DIR [--start unet] [--minutes 20]
[--rate 5e-4] [--seed 0] [--only NAME,...]`. Each variant starts from the weights of `--start` and is `unet` with one
thing changed; set OMP_NUM_THREADS=1. Every sequence of each complete exam of each `--validation` is dropped in turn and
made from three views, without the mirrored exam. A variant that is done is neither trained nor scored again.

The first table has the means for each folder. The second table has what each variant gives beyond `trained on`, with
95 % intervals. SSIM is inside the brain.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch

from app.core.config import WEIGHTS_DIR
from app.data.discovery import scan
from app.data.segmentations import find_segmentations
from app.evaluation.scoring import VolumeScores
from app.networks import new_generator
from app.preprocessing.target_intensity import IntensityPredictor
from app.registry.manifest import read_manifest
from app.training import validation
from app.training.checkpoint import State
from app.training.config import load_recipe
from app.training.data.cache import build_cache
from app.training.intensity_fit import fit_intensity
from app.training.tasks.synthesis_recipe import SynthesisRecipe, generator_config, generator_spec
from app.training.trainer import TrainingPaths
from benchmarks._common import choose
from benchmarks._training import difference_cells, kept_scores, train_once

#: As a clinic's exams are (docs/training.md).
CLINIC = ["augmentation.rotate=15", "augmentation.thick_exam=6", "augmentation.mask_error=3"]
#: None is the model as it is.
VARIANTS: dict[str, list[str] | None] = {
    "as it is": None,
    "trained on": [],
    "scanners": ["augmentation.scanner=0.3"],
    "scanners further apart": ["augmentation.scanner=0.6"],
    "neighbours": ["network.neighbours=1"],
    "two neighbours": ["network.neighbours=2"],
    "three slices a pass": ["network.neighbours=2", "network.slices=3"],
    "clinic": CLINIC,
    "scanners and neighbours": ["augmentation.scanner=0.3", "network.neighbours=1"],
}
BASE = "trained on"
COLUMNS = ("official_healthy", "official_tumour", "ssim_brain", "ssim_tumour", "psnr_brain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--validation", type=lambda text: Path(text).resolve(), nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", default="unet", help="a model of the shipped weights")
    parser.add_argument("--minutes", type=float, default=20.0, help="of processor time")
    parser.add_argument("--rate", type=float, default=5e-4, help="learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names of variants, separated by commas")
    options = parser.parse_args()
    chosen = choose(VARIANTS, options.only, parser)
    scores: dict[tuple[str, str], list[VolumeScores]] = {}
    print("| exams | variant | " + " | ".join(COLUMNS) + " |\n" + "|---" * (2 + len(COLUMNS)) + "|")
    for name in chosen:
        run = options.out / f"{options.start}-{options.minutes:g}-{options.seed}" / name.replace(" ", "-")
        state = _trained(name, run, options)
        if state is None:
            return
        for folder in options.validation:
            kept = run / f"{folder.name}-scores.json"
            rows = scores[folder.name, name] = kept_scores(kept, partial(_score, state, folder, options))
            means = (np.nanmean([r.values[c] for r in rows]) for c in COLUMNS)
            print(f"| {folder.name} | {name} | " + " | ".join(f"{v:.4f}" for v in means) + " |", flush=True)
    print(f"\n| exams | beyond `{BASE}` | " + " | ".join(COLUMNS) + " |\n" + "|---" * (2 + len(COLUMNS)) + "|")
    for (folder, name), rows in scores.items():
        if name == BASE or (folder, BASE) not in scores:
            continue
        cells = difference_cells(rows, scores[folder, BASE], dict.fromkeys(COLUMNS, 4))
        print(f"| {folder} | {name} | {cells} |")


def _trained(name: str, run: Path, options: argparse.Namespace) -> State | None:
    """Trains one variant unless that is done; None when a signal ended it."""
    changes = VARIANTS[name]
    # A step of next to no length gives the model as it is.
    minutes, steps, rate = (options.minutes, 0, options.rate) if changes is not None else (0, 1, 1e-12)
    length = [f"schedule.steps={steps}", f"schedule.budget_minutes={minutes}", "schedule.epoch_steps=100000"]
    settings = [*length, f"optimizer.learning_rate={rate}", f"seed={options.seed}", "data.held_out=0"]
    recipe = load_recipe("unet", [*settings, *(changes or [])])
    start = read_manifest(WEIGHTS_DIR).entry(options.start)
    return train_once(recipe, TrainingPaths(options.data, run, options.out / "cache"), start)


def _score(state: State, folder: Path, options: argparse.Namespace) -> list[VolumeScores]:
    """Scores what the averaged network makes of the exams of a folder, each sequence dropped in turn."""
    recipe = state.recipe
    assert isinstance(recipe, SynthesisRecipe)
    network = new_generator(generator_config(recipe))
    state.load_into(network)
    subjects = build_cache(options.data, options.out / "cache", recipe.normalization.build())
    predictor = IntensityPredictor.from_json(fit_intensity([s.intensities for s in subjects]))
    spec = generator_spec(recipe, generator_config(recipe), None).model_copy(update={"flip_average": False})
    model = validation.candidate_model(network.eval(), spec, predictor, torch.device("cpu"))
    cases = scan(folder).cases
    return validation.score_missing_sequences(model, cases, find_segmentations(folder, cases))


if __name__ == "__main__":
    main()
