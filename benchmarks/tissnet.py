"""What each part of TISS-Net gives, at equal numbers of updates: tables 1 and 2 of its paper at small scale.

Usage: `python -m benchmarks tissnet --data TRAIN --validation DIR --out DIR [--steps 400] [--target t2f] [--seed 0]
[--only NAME,...]`. Each variant trains `tissnet_compact` for one target with some losses, from random weights and one
seed. Where the perceptibility network has a part, it learns alone for half as many updates before. A variant that is
done is neither trained nor scored again.

The first table has the Dice of the answer (the fine one, or the coarse one where no segmentor learns), what the
variant's own perceptibility network sees in the made sequence, and the sequence's SSIM: in the brain, and around the
tumour. The second table has what each variant gives beyond another, with 95 % intervals.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from app.core.constants import Modality
from app.data.discovery import scan
from app.data.labels import REGIONS, load_labels
from app.data.loading import load_complete
from app.data.segmentations import find_segmentations
from app.evaluation.metrics.image import image_scores
from app.evaluation.metrics.segmentation import segmentation_scores
from app.evaluation.scoring import VolumeScores
from app.inference.tumour.segmenter import brighten
from app.inference.tumour.tissnet import CompletingSegmenter
from app.networks.tissnet.model import TissNet
from app.training.checkpoint import State
from app.training.config import load_recipe
from app.training.tasks.tissnet import TissNetRecipe
from app.training.trainer import TrainingPaths
from benchmarks._common import choose
from benchmarks._training import difference_cells, kept_scores, train_once


class Variant(NamedTuple):
    """What is changed, which answer is scored, and what it is compared with."""

    changes: list[str]
    answer: str = "coarse"
    beside: tuple[str, ...] = ()


def _without(*terms: str) -> list[str]:
    return [f"losses.{term}=0" for term in terms]


_SEGMENTOR = ("fine", "error", "consistency")
_SYNTHESIS = ("adversarial", "l1_global", "l1_tumour", "perceptibility")
_ALONE, _REAL = "three sequences alone", "four real sequences"
VARIANTS: dict[str, Variant] = {
    _ALONE: Variant(_without(*_SYNTHESIS, *_SEGMENTOR)),
    _REAL: Variant(["data.targets=[]", "data.complete=true", *_without(*_SEGMENTOR)]),
    "global synthesis": Variant(_without("l1_tumour", "perceptibility", "coarse", *_SEGMENTOR)),
    "and around the tumour": Variant(_without("perceptibility", "coarse", *_SEGMENTOR), beside=("global synthesis",)),
    "and perceptibility": Variant(_without("coarse", *_SEGMENTOR), beside=("and around the tumour",)),
    "and coarse": Variant(_without(*_SEGMENTOR), beside=("and perceptibility", _ALONE)),
    "and fine": Variant(_without("error", "consistency"), "fine", ("and coarse",)),
    "and error": Variant(_without("consistency"), "fine", ("and fine",)),
    "and consistency": Variant([], "fine", ("and error", _ALONE, _REAL)),
    "all without adversary": Variant(_without("adversarial"), "fine", ("and consistency",)),
}
COLUMNS = (*(f"dice_{r}" for r in REGIONS), "hd95_WT", "assd_WT", "seen_WT", "ssim_brain", "ssim_tumour", "psnr_brain")
#: Least overlap of windows: less than in use, for time.
_OVERLAP = 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--validation", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=400, help="updates")
    parser.add_argument("--target", default="t2f")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names of variants, separated by commas")
    options = parser.parse_args()
    chosen = choose(VARIANTS, options.only, parser)
    scores: dict[str, list[VolumeScores]] = {}
    print(f"| {options.steps} updates each | processor-minutes | " + " | ".join(COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for name in chosen:
        run = options.out / f"{options.target}-{options.steps}-{options.seed}" / name.replace(" ", "-")
        state = _trained(name, run, options)
        if state is None:
            return
        scores[name] = kept_scores(
            run / "scores.json", partial(_score, state, VARIANTS[name].answer, options.validation)
        )
        means = (np.mean([row.values.get(c, np.nan) for row in scores[name]]) for c in COLUMNS)
        print(f"| {name} | {state.minutes:.1f} | " + " | ".join(f"{v:.3f}" for v in means) + " |", flush=True)
    _print_differences(scores)


def _print_differences(scores: dict[str, list[VolumeScores]]) -> None:
    print("\n| one beyond another | " + " | ".join(COLUMNS) + " |\n" + "|---" * (1 + len(COLUMNS)) + "|")
    for name, rows in scores.items():
        for base in VARIANTS[name].beside:
            cells = difference_cells(rows, scores.get(base, []), dict.fromkeys(COLUMNS, 3))
            print(f"| {name} - {base} | {cells} |")


def _trained(name: str, run: Path, options: argparse.Namespace) -> State | None:
    """Trains one variant unless that is done; None when a signal ended it."""
    changes = VARIANTS[name].changes
    # Where nothing asks for S_p, it does not learn.
    alone = 0 if "losses.perceptibility=0" in changes or name == _REAL else options.steps // 2
    steps = options.steps + alone
    target = [f"data.targets=['{options.target}']", "data.complete=false", "schedule.epoch_steps=100000"]
    length = [f"schedule.steps={steps}", "schedule.budget_minutes=0", f"tissnet.perceptibility_steps={alone}"]
    # The rate falls over the same updates, whether S_p learned before them or not.
    constant = load_recipe("tissnet_compact").optimizer.constant_share * options.steps
    chosen = [
        "data.held_out=0",
        f"seed={options.seed}",
        f"optimizer.constant_share={(alone + constant) / steps}",
    ]
    recipe = load_recipe("tissnet_compact", [*target, *length, *chosen, *changes])
    return train_once(recipe, TrainingPaths(options.data, run, options.out / "cache"))


def _score(state: State, answer: str, validation: Path) -> list[VolumeScores]:
    """Scores the averaged network on complete subjects without the target, or as they are."""
    recipe = state.recipe
    assert isinstance(recipe, TissNetRecipe)
    network = TissNet(recipe.architecture)
    state.load_into(network)
    segmenter = CompletingSegmenter(network.eval(), recipe.spec, torch.device("cpu"), torch.bfloat16, _OVERLAP)
    cases = scan(validation).cases
    masks, rows = find_segmentations(validation, cases), []
    target: Modality | None = next(iter(recipe.data.targets), None)
    for subject, volumes in load_complete(cases):
        grid = volumes["t1n"].grid
        truth = load_labels(masks.get(subject), grid, subject)
        if truth is None:
            continue
        found = segmenter.run({m: v.data for m, v in volumes.items()}, target)
        values: dict[str, float] = {}
        # An answer that nothing taught is noise.
        if recipe.losses.coarse > 0 or recipe.losses.fine > 0:
            labels = found.labels if answer == "fine" else found.coarse
            values |= segmentation_scores(labels, truth, grid.lps_spacing)
        if target is not None and found.synthesis is not None and recipe.losses.l1_global > 0:
            real = volumes[target].data
            made = brighten(found.synthesis, float(real[real > 0].mean()))
            values |= image_scores(made, real, truth > 0, grid.lps_spacing)
            if recipe.losses.perceptibility > 0:
                seen = segmentation_scores(segmenter.perceive(made, target), truth, grid.lps_spacing)
                values["seen_WT"] = seen["dice_WT"]
        rows.append(VolumeScores(subject, target or "", values))
    return rows


if __name__ == "__main__":
    main()
