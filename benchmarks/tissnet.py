"""What each part of TISS-Net gives, at equal processor time: tables 1 and 2 of its paper at small scale.

Usage: `python -m benchmarks tissnet --data TRAIN --validation DIR --out DIR [--minutes 10] [--target t2f] [--seed 0]
[--only NAME,...]`. Each variant trains `tissnet_compact` for one target with some losses, from random weights and one
seed. The table has the Dice of the answer (the fine one, or the coarse one where no segmentor learns), what the
variant's own perceptibility network sees in the made sequence, and the sequence's SSIM in the brain.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from app.core.constants import Modality
from app.data.discovery import scan
from app.data.labels import REGIONS, load_labels
from app.data.loading import load_complete
from app.data.segmentations import find_segmentations
from app.evaluation.metrics.image import image_scores
from app.evaluation.metrics.segmentation import segmentation_scores
from app.inference.tumour.segmenter import brighten
from app.inference.tumour.tissnet import CompletingSegmenter
from app.networks.tissnet.model import TissNet
from app.training.checkpoint import LAST, State, load_state
from app.training.config import load_recipe
from app.training.tasks.tissnet import TissNetRecipe
from app.training.trainer import TrainingPaths, train
from benchmarks._common import choose

#: Terms that are left out, by name.
_SEGMENTOR = ("fine", "error", "consistency")
_SYNTHESIS = ("adversarial", "l1_global", "l1_tumour", "perceptibility")


def _without(*terms: str) -> list[str]:
    return [f"losses.{term}=0" for term in terms]


#: Each with the answer that is scored.
VARIANTS: dict[str, tuple[list[str], str]] = {
    "three sequences alone": (_without(*_SYNTHESIS, *_SEGMENTOR), "coarse"),
    "four real sequences": (["data.targets=[]", "data.complete=true", *_without(*_SEGMENTOR)], "coarse"),
    "global synthesis": (_without("l1_tumour", "perceptibility", "coarse", *_SEGMENTOR), "coarse"),
    "and around the tumour": (_without("perceptibility", "coarse", *_SEGMENTOR), "coarse"),
    "and perceptibility": (_without("coarse", *_SEGMENTOR), "coarse"),
    "and coarse": (_without(*_SEGMENTOR), "coarse"),
    "and fine": (_without("error", "consistency"), "fine"),
    "and error": (_without("consistency"), "fine"),
    "and consistency": ([], "fine"),
    "all without adversary": (_without("adversarial"), "fine"),
}
COLUMNS = (*(f"dice_{region}" for region in REGIONS), "hd95_WT", "assd_WT", "seen_WT", "ssim_brain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--validation", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10.0, help="of processor time")
    parser.add_argument("--target", default="t2f")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names of variants, separated by commas")
    options = parser.parse_args()
    chosen = choose(VARIANTS, options.only, parser)
    print(f"| {options.minutes:g} minutes each | steps | " + " | ".join(COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for name in chosen:
        state = _trained(name, options)
        if state is None:
            return
        scores = _score(state, VARIANTS[name][1], options.validation)
        cells = " | ".join(f"{scores.get(c, np.nan):.3f}" for c in COLUMNS)
        print(f"| {name} | {state.step} | {cells} |", flush=True)


def _trained(name: str, options: argparse.Namespace) -> State | None:
    """Trains one variant unless that is done; None when a signal ended it."""
    run = options.out / name.replace(" ", "-")
    begun = (run / LAST).exists()
    if not begun or load_state(run / LAST).minutes < options.minutes:
        target = [f"data.targets=['{options.target}']", "data.complete=false", "schedule.epoch_steps=100000"]
        length = [f"schedule.budget_minutes={options.minutes}", "data.held_out=0", f"seed={options.seed}"]
        # Where nothing asks for S_p, it takes no time; else as little as so short a run can spare.
        count = 0 if "losses.perceptibility=0" in VARIANTS[name][0] else 20 * options.minutes
        steps = [f"tissnet.perceptibility_steps={count:.0f}"]
        recipe = load_recipe("tissnet_compact", [*target, *length, *steps, *VARIANTS[name][0]])
        paths = TrainingPaths(options.data, run, options.out / "cache")
        if train(recipe, paths, resume=begun, clock=time.process_time).signal_number is not None:
            return None
    return load_state(run / LAST)


def _score(state: State, answer: str, validation: Path) -> Mapping[str, float]:
    """Scores the averaged network on complete subjects without the target, or as they are."""
    recipe = state.recipe
    assert isinstance(recipe, TissNetRecipe)
    network = TissNet(recipe.architecture)
    state.load_into(network)
    segmenter = CompletingSegmenter(network.eval(), recipe.spec, torch.device("cpu"), torch.bfloat16)
    cases = scan(validation).cases
    masks, rows = find_segmentations(validation, cases), []
    target: Modality | None = next(iter(recipe.data.targets), None)
    for subject, volumes in load_complete(cases):
        grid = volumes["t1n"].grid
        truth = load_labels(masks.get(subject), grid, subject)
        if truth is None:
            continue
        found = segmenter.run({m: v.data for m, v in volumes.items()}, target)
        row = segmentation_scores(getattr(found, "labels" if answer == "fine" else "coarse"), truth, grid.lps_spacing)
        if target is not None and found.synthesis is not None and recipe.losses.l1_global > 0:
            real = volumes[target].data
            made = brighten(found.synthesis, float(real[real > 0].mean()))
            row |= image_scores(made, real, truth > 0, grid.lps_spacing)
            if recipe.losses.perceptibility > 0:
                seen = segmentation_scores(segmenter.perceive(made, target), truth, grid.lps_spacing)
                row["seen_WT"] = seen["dice_WT"]
        rows.append(row)
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} if rows else {}


if __name__ == "__main__":
    main()
