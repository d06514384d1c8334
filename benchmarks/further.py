"""What a change of the training gives a trained generator, trained on with it for equal processor time.

Usage: `python -m benchmarks further --data TRAIN --validation DIR [DIR ...] --out DIR [--start unet] [--minutes 20]
[--rate 5e-4] [--seed 0] [--only NAME,...] [--simulated DIR] [--unpaired DIR] [--downstream]`. Each variant starts from
the weights of `--start` and is `unet` with one thing changed, or `specialist` where that model makes one sequence; set
OMP_NUM_THREADS=1. Every sequence that it makes is dropped in turn from each complete exam of each `--validation` and
made from three views, without the mirrored exam. A variant that is done is neither trained nor scored again. Two
variants see more exams: `simulated` those of `--simulated` (of `simulate` or `transplant`), `unpaired` those of
`--unpaired`, which lack the sequence. With `--downstream` the tumour segmenter finds the tumour of each exam with the
made sequence.

The first table has the means for each folder. The second table has what each variant gives beyond `trained on`, with
95 % intervals. SSIM is inside the brain.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from app.core.config import WEIGHTS_DIR
from app.core.constants import REFERENCE_OF
from app.data.cases import Case
from app.data.discovery import scan
from app.data.labels import load_labels
from app.data.loading import load_complete
from app.data.nifti_writer import to_array
from app.data.segmentations import find_segmentations
from app.evaluation.metrics.segmentation import segmentation_scores
from app.evaluation.scoring import VolumeScores
from app.inference.models import Model
from app.inference.pipeline import synthesize_case
from app.inference.tumour.segmentation import TumourSegmenter
from app.registry.manifest import read_manifest, spec_as
from app.registry.spec import GeneratorSpec
from app.training import validation
from app.training.checkpoint import State
from app.training.config import load_recipe
from app.training.trainer import TrainingPaths
from app.training.validation import SEGMENTATION_METRICS
from benchmarks._common import choose
from benchmarks._training import difference_cells, generator_of, kept_scores, train_once

#: As a clinic's exams are (docs/training.md).
CLINIC = ["augmentation.rotate=15", "augmentation.thick_exam=6", "augmentation.mask_error=3"]
#: None is the model as it is.
VARIANTS: dict[str, list[str] | None] = {
    "as it is": None,
    "trained on": [],
    "scanners": ["augmentation.scanner=0.3"],
    "sharpness": ["augmentation.sharpness=0.7"],
    "scanners further apart": ["augmentation.scanner=0.6"],
    "neighbours": ["network.neighbours=1"],
    "two neighbours": ["network.neighbours=2"],
    "three slices a pass": ["network.neighbours=2", "network.slices=3"],
    "clinic": CLINIC,
    "scanners and neighbours": ["augmentation.scanner=0.3", "network.neighbours=1"],
    "simulated": ["data.simulated_share=0.4"],
    "unpaired": [],
}
#: Those that need a folder of exams.
_MORE = ("simulated", "unpaired")
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
    parser.add_argument("--simulated", type=lambda text: Path(text).resolve(), metavar="DIR")
    parser.add_argument("--unpaired", type=lambda text: Path(text).resolve(), metavar="DIR")
    parser.add_argument("--downstream", action="store_true", help="Dice with the made sequence as well")
    options = parser.parse_args()
    known = [name for name in VARIANTS if name not in _MORE or getattr(options, name) is not None]
    chosen = choose(known, options.only, parser)
    columns = (*COLUMNS, *(SEGMENTATION_METRICS if options.downstream else ()))
    scores: dict[tuple[str, str], list[VolumeScores]] = {}
    print("| exams | variant | " + " | ".join(columns) + " |\n" + "|---" * (2 + len(columns)) + "|")
    for name in chosen:
        run = options.out / f"{options.start}-{options.minutes:g}-{options.seed}" / name.replace(" ", "-")
        state = _trained(name, run, options)
        if state is None:
            return
        for folder in options.validation:
            kept = run / f"{folder.name}-{'downstream' if options.downstream else 'scores'}.json"
            rows = scores[folder.name, name] = kept_scores(kept, partial(_score, state, folder, options))
            means = (np.nanmean([r.values[c] for r in rows]) for c in columns)
            print(f"| {folder.name} | {name} | " + " | ".join(f"{v:.4f}" for v in means) + " |", flush=True)
    print(f"\n| exams | beyond `{BASE}` | " + " | ".join(columns) + " |\n" + "|---" * (2 + len(columns)) + "|")
    for (folder, name), rows in scores.items():
        if name == BASE or (folder, BASE) not in scores:
            continue
        cells = difference_cells(rows, scores[folder, BASE], dict.fromkeys(columns, 4))
        print(f"| {folder} | {name} | {cells} |")


def _trained(name: str, run: Path, options: argparse.Namespace) -> State | None:
    """Trains one variant unless that is done; None when a signal ended it."""
    changes = VARIANTS[name]
    # A step of next to no length gives the model as it is.
    minutes, steps, rate = (options.minutes, 0, options.rate) if changes is not None else (0, 1, 1e-12)
    length = [f"schedule.steps={steps}", f"schedule.budget_minutes={minutes}", "schedule.epoch_steps=100000"]
    settings = [*length, f"optimizer.learning_rate={rate}", f"seed={options.seed}", "data.held_out=0"]
    start = read_manifest(WEIGHTS_DIR).entry(options.start)
    targets = spec_as(start, GeneratorSpec).targets
    own = [f"data.targets={list(targets)}"] if len(targets) == 1 else []
    recipe = load_recipe("specialist" if own else "unet", [*settings, *own, *(changes or [])])
    more = {key: getattr(options, key) for key in _MORE if key == name}
    return train_once(recipe, TrainingPaths(options.data, run, options.out / "cache", **more), start)


def _score(state: State, folder: Path, options: argparse.Namespace) -> list[VolumeScores]:
    """Scores what the averaged network makes of the exams of a folder, each sequence dropped in turn."""
    model = generator_of(state, options.data, options.out / "cache")
    cases = scan(folder).cases
    masks = find_segmentations(folder, cases)
    rows = validation.score_missing_sequences(model, cases, masks)
    if options.downstream:
        _add_dice(rows, model, cases, masks)
    return rows


def _add_dice(rows: list[VolumeScores], model: Model, cases: Sequence[Case], masks: Mapping[str, Path]) -> None:
    """Adds the Dice of the tumour segmenter, the made sequence in the real one's place."""
    segmenter = TumourSegmenter.open(read_manifest(WEIGHTS_DIR).entry("tumour_segmenter"), "cpu")
    of = {(row.subject, row.modality): row for row in rows}
    for subject, volumes in load_complete(cases):
        grid = volumes["t1n"].grid
        truth = load_labels(masks.get(subject), grid, subject)
        for target in model.targets:
            if truth is None or (subject, target) not in of:
                continue
            inputs = {m: v for m, v in volumes.items() if m != target}
            made = to_array(synthesize_case(inputs, target, REFERENCE_OF[target], model).image, grid)
            labels = segmenter.segment({**{m: v.data for m, v in inputs.items()}, target: made})
            of[subject, target].values.update(segmentation_scores(labels, truth, grid.lps_spacing))


if __name__ == "__main__":
    main()
