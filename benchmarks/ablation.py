"""What each part of the training method gives, at equal budget: one run per variant, scored on subjects held out.

Usage: `python -m benchmarks ablation --data TRAIN --out DIR [--steps 200 | --minutes M] [--validation DIR] [--seed 0]
[--only NAME,...]`. Every variant changes the recipe `compact` in one thing, or Algorithm 1 in one thing, and starts
from random weights with one seed. It makes the same number of images (eight a step) of the same subjects, or as many
as it can in M minutes of processor time. It is validated on the same held-out subjects, or on those of `--validation`,
axial view only. Time and images are in the table (set OMP_NUM_THREADS=1). What is done already is not run again.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path

from app.core.config import WEIGHTS_DIR
from app.registry.manifest import read_manifest
from app.training.checkpoint import LAST, State, load_state
from app.training.config import load_recipe
from app.training.tasks.base import task_of
from app.training.trainer import TrainingPaths, train
from benchmarks._common import choose

COMMON = ["schedule.validate_every=1", "schedule.epoch_steps=100000", "schedule.validation_views=['axial']"]
ADVERSARY = ["losses.adversarial=0.025", "losses.classification=0.025", "network.discriminator_width=16"]
UNET = ["network.kind='unet'"]
#: The published losses but focal Tversky, at the width, rate and canvas of `compact`; parts as they were before.
ALGORITHM_ONE = ["losses.l1=10", "losses.ssim=5", "losses.adversarial=0.25", "losses.classification=0.25",
                 "losses.cycle=1", "losses.feature=1", "losses.enhancing=0", "schedule.targets_per_batch=4",
                 "schedule.batch_size=2", "network.discriminator_width=16"]  # fmt: skip
#: Each published part that a recipe may choose, alone.
PARTS: dict[str, list[str]] = {
    "an update per sequence": ["schedule.update='sequence'"],
    "availability per sample": ["data.availability='sample'"],
    "SSIM as a sum": ["losses.ssim_tissue='sum'"],
    "L1 over all pixels": ["losses.pixels='all'"],
    "L1 over all pixels and nothing masked": ["losses.pixels='all'", "losses.mask_background=false"],
    "the published discriminator": ["network.discriminator='published'"],
}
TVERSKY = ["losses.tversky=5"]
VARIANTS: dict[str, list[str]] = {
    "compact": [],
    "plain U-Net": UNET,
    "U-Net with adversary and classification": [*UNET, *ADVERSARY],
    "U-Net with focal Tversky": [*UNET, "losses.tversky=0.5"],
    "U-Net with every sequence in turn": [*UNET, "schedule.targets_per_batch=4", "schedule.batch_size=2"],
    "wide U-Net with every sequence in turn": [
        *UNET, "network.widths=[64,128,256,512]", "schedule.targets_per_batch=4", "schedule.batch_size=2"
    ],
    "U-Net on axial slices only": [*UNET, "data.views=['axial']"],
    "U-Net shown thick slices": [*UNET, "augmentation.thick=5"],
    "U-Net with confidence by likelihood": [*UNET, "network.confidence='likelihood'", "losses.confidence=0.1"],
    "U-Net with bounded confidence": [*UNET, "network.confidence='bounded'"],
    "the paper's Algorithm 1 with all losses": [
        "losses.l1=10", "losses.ssim=5", "losses.adversarial=0.25", "losses.classification=0.25", "losses.cycle=1",
        "losses.feature=1", "losses.tversky=5", "schedule.targets_per_batch=4", "schedule.batch_size=2",
        "network.discriminator_width=16",
    ],
    "adversary and classification": ADVERSARY,
    "focal Tversky": ["losses.tversky=0.5"],
    "SSIM over the whole brain": ["losses.ssim_tissue=whole"],
    "no variation of brightness and no turning": [
        f"augmentation.{name}=0"
        for name in ("rotate", "zoom", "contrast", "brightness", "gamma", "bias", "noise", "thick")
    ],
    "always one missing": ["data.single_missing=1"],
    "axial slices only": ["data.views=['axial']"],
    "cycle and feature": ["losses.cycle=0.1", "losses.feature=0.1"],
    "half width": ["network.preset='half'"],
    "gradient norm 0.1": ["optimizer.clip_norm=0.1"],
    "every sequence in turn": ["schedule.targets_per_batch=4", "schedule.batch_size=2"],
    "no SSIM": ["losses.ssim=0"],
    "no weight on enhancement": ["losses.enhancing=0"],
    "float32": ["schedule.precision=fp32"],
    "Algorithm 1": ALGORITHM_ONE,
    "Algorithm 1 without adversary": [*ALGORITHM_ONE, "losses.adversarial=0", "losses.classification=0"],
    **{f"Algorithm 1 with {name}": [*ALGORITHM_ONE, *changes] for name, changes in PARTS.items()},
    "Algorithm 1 with focal Tversky": [*ALGORITHM_ONE, *TVERSKY],
    "Algorithm 1 with the published focal Tversky": [*ALGORITHM_ONE, *TVERSKY, "losses.tversky_form='published'"],
    "Algorithm 1 as published": [*ALGORITHM_ONE, *(c for changes in PARTS.values() for c in changes)],
    "Algorithm 1 as published without adversary": [
        *ALGORITHM_ONE, *(c for changes in PARTS.values() for c in changes), "losses.adversarial=0",
        "losses.classification=0",
    ],
}  # fmt: skip
COLUMNS = ("official_healthy", "official_tumour", "ssim_brain", "ssim_tumour", "psnr_brain", "stripe_superior")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=0.0, help="of processor time, instead of steps")
    parser.add_argument("--validation", type=lambda text: Path(text).resolve(), help="instead of four held out")
    parser.add_argument("--seed", type=int, default=0, help="another one draws otherwise and holds out other subjects")
    parser.add_argument("--only", default="", help="names of variants, separated by commas")
    options = parser.parse_args()
    chosen = choose(VARIANTS, options.only, parser)
    for name in chosen:
        if not _run(name, options):
            return
    budget = f"{options.minutes:g} minutes" if options.minutes > 0 else f"{options.steps} steps"
    print(f"| {budget} each | processor-minutes | images | " + " | ".join(COLUMNS) + " |")
    print("|---" * (3 + len(COLUMNS)) + "|")
    for name in chosen:
        run = _folder(name, options.out)
        state, scores = load_state(run / LAST), _scores(run / "log.csv")
        cells = " | ".join(f"{scores[c]:.4f}" if "official" in c else f"{scores[c]:.3f}" for c in COLUMNS)
        images = state.step * state.recipe.schedule.images_per_step
        print(f"| {name} | {state.minutes:.1f} | {images:,} | {cells} |")


def _run(name: str, options: argparse.Namespace) -> bool:
    """Trains one variant unless that is done; False when a signal ended it."""
    run = _folder(name, options.out)
    begun = (run / LAST).exists()
    if begun and _is_done(load_state(run / LAST), options) and "official_healthy" in _scores(run / "log.csv"):
        return True
    length = [f"schedule.steps={0 if options.minutes > 0 else options.steps}",
              f"schedule.budget_minutes={options.minutes}"]  # fmt: skip
    held_out = 0 if options.validation is not None else 4
    settings = [*COMMON, *VARIANTS[name], *length, f"data.held_out={held_out}", f"seed={options.seed}"]
    recipe = load_recipe("compact", settings)
    paths = TrainingPaths(options.data, run, options.out / "cache", options.validation)
    teacher = read_manifest(WEIGHTS_DIR).entry("segmenter") if task_of(recipe).teaching_loss(recipe) else None
    outcome = train(recipe, paths, segmenter=teacher, resume=begun, clock=time.process_time)
    return outcome.signal_number is None


def _is_done(state: State, options: argparse.Namespace) -> bool:
    return bool(state.minutes >= options.minutes if options.minutes > 0 else state.step >= options.steps)


def _folder(name: str, out: Path) -> Path:
    return out / name.replace(" ", "-").replace("'", "").replace(",", "")


def _scores(path: Path) -> dict[str, float]:
    """The last validation's."""
    with path.open() as stream:
        rows = [r for r in csv.DictReader(stream) if r["name"].startswith("val_")]
    return {r["name"].removeprefix("val_"): float(r["value"]) for r in rows}


if __name__ == "__main__":
    main()
