"""What few exams with a sequence teach, with and without many that lack it: the experiment of DS3-Net's paper in small.

Usage: `python -m benchmarks ds3net --data TRAIN --validation DIR --out DIR [--steps 400] [--target t1c] [--seed 0]
[--only NAME,...]`. Of the subjects of `--data` 2, 3, 16 or all are paired; of the others the target is withheld. At
each share `paired` trains the teacher alone, and `DS3-Net` both networks, from random weights and one seed. Either way
the teacher gets so many updates. The other variants leave out one part, with 2 paired subjects; or they are our own
U-Net (recipe `specialist`) with and without the unpaired exams. A variant that is done is neither trained nor scored
again.

The first table has the scores of the target that is made for every subject of `--validation`: inside the brain by the
project's metrics; of the whole volume in [0, 1], as the paper; and the Dice of the tumour segmenter with it. The second
table has what each variant gives beyond the one that sees paired exams alone, with 95 % intervals.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from app.core.config import WEIGHTS_DIR
from app.core.constants import MODALITIES, REFERENCE_OF, Modality
from app.data.cases import Case
from app.data.discovery import scan
from app.data.labels import load_labels
from app.data.loading import load_complete
from app.data.nifti_writer import to_array
from app.data.segmentations import find_segmentations
from app.evaluation.metrics.image import image_scores
from app.evaluation.metrics.segmentation import segmentation_scores
from app.evaluation.metrics.ssim import mean_ssim
from app.evaluation.scoring import VolumeScores
from app.inference.pipeline import synthesize_case
from app.inference.tumour.segmentation import TumourSegmenter
from app.networks import new_generator
from app.networks.ds3net.slice_generator import Ds3NetSliceGenerator
from app.networks.hf_gan import HfGan
from app.networks.unet import UNetGenerator
from app.preprocessing.normalization import rescale_as_scored
from app.preprocessing.target_intensity import IntensityPredictor
from app.registry.manifest import read_manifest
from app.training import validation
from app.training.checkpoint import State
from app.training.config import load_recipe
from app.training.data.cache import build_cache
from app.training.fits.intensity import fit_intensity
from app.training.tasks.ds3net_recipe import Ds3NetRecipe
from app.training.tasks.synthesis_recipe import SynthesisRecipe, generator_config, generator_spec
from app.training.trainer import TrainingPaths
from benchmarks._common import choose
from benchmarks._training import difference_cells, kept_scores, train_once

SliceGenerator = HfGan | UNetGenerator | Ds3NetSliceGenerator


class Variant(NamedTuple):
    """How many are paired (0: all), and what is changed.

    Attributes:
        network: whose weights are scored: `average` is the student's, averaged; others are as the last step left them.
        recipe: what is trained.
        unpaired: whether the exams that lack the target are seen.
    """

    paired: int
    changes: tuple[str, ...] = ()
    network: str = "average"
    recipe: str = "ds3net_compact"
    unpaired: bool = True


ALONE = ("ds3net.teacher_share=1", "ds3net.stopped_early=0")
FEWEST = 2
SHARES = (FEWEST, 3, 16, 0)


def _name(count: int, what: str) -> str:
    return f"{count or 'all'} {what}"


BASE = _name(FEWEST, "DS3-Net")
VARIANTS: dict[str, Variant] = {
    **{_name(n, "paired"): Variant(n, ALONE, unpaired=False) for n in SHARES},
    **{_name(n, "DS3-Net"): Variant(n) for n in SHARES},
    f"{BASE} without the map": Variant(FEWEST, ("ds3net.difficulty=false",)),
    f"{BASE} without feature distillation": Variant(FEWEST, ("losses.feature=0",)),
    f"{BASE} without image distillation": Variant(FEWEST, ("losses.image=0",)),
    f"{BASE} its student unaveraged": Variant(FEWEST, network="student"),
    f"{BASE} its teacher unaveraged": Variant(FEWEST, network="teacher"),
    _name(FEWEST, "paired U-Net"): Variant(FEWEST, recipe="specialist", unpaired=False),
    _name(FEWEST, "U-Net and unpaired"): Variant(FEWEST, recipe="specialist"),
}
IMAGE_COLUMNS = ("ssim_brain", "psnr_brain", "ssim_tumour", "ssim_whole", "psnr_whole", "mse_whole")
COLUMNS = (*IMAGE_COLUMNS, "dice_WT", "dice_TC", "dice_ET")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--validation", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--out", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--steps", type=int, default=400, help="updates of the teacher")
    parser.add_argument("--target", choices=MODALITIES, default="t1c")
    parser.add_argument("--seed", type=int, default=0, help="another one chooses and draws otherwise")
    parser.add_argument("--only", default="", help="names of variants, separated by commas")
    options = parser.parse_args()
    chosen = choose(VARIANTS, options.only, parser)
    # What is linked and trained there is of one choice of subjects.
    options.out = options.out / f"{options.target}-{options.steps}-{options.seed}"
    scores: dict[str, list[VolumeScores]] = {}
    print(f"| {options.steps} updates each | processor-minutes | " + " | ".join(COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for name in chosen:
        run = _run(VARIANTS[name], options)
        state = _trained(VARIANTS[name], run, options)
        if state is None:
            return
        kept = run / f"{VARIANTS[name].network}-scores.json"
        scores[name] = kept_scores(kept, partial(_score, state, VARIANTS[name], options))
        means = (np.mean([row.values[c] for row in scores[name]]) for c in COLUMNS)
        print(f"| {name} | {state.minutes:.1f} | " + " | ".join(f"{v:.4f}" for v in means) + " |", flush=True)
    _print_differences(scores)


def _print_differences(scores: dict[str, list[VolumeScores]]) -> None:
    print("\n| beyond paired alone | " + " | ".join(COLUMNS) + " |\n" + "|---" * (1 + len(COLUMNS)) + "|")
    for name, rows in scores.items():
        what = "paired U-Net" if VARIANTS[name].recipe == "specialist" else "paired"
        base = scores.get(_name(VARIANTS[name].paired, what), rows)
        if base is rows:
            continue
        print(f"| {name} | {difference_cells(rows, base, dict.fromkeys(COLUMNS, 4))} |")


def _run(variant: Variant, options: argparse.Namespace) -> Path:
    own = () if variant.recipe == "ds3net_compact" else (variant.recipe, "both" if variant.unpaired else "alone")
    place: Path = options.out / "-".join((str(variant.paired), *variant.changes, *own)).replace(".", "-")
    return place


def _trained(variant: Variant, run: Path, options: argparse.Namespace) -> State | None:
    """Trains one variant unless that is done; None when a signal ended it."""
    length = [f"schedule.steps={options.steps}", "schedule.budget_minutes=0", "schedule.epoch_steps=100000"]
    chosen = [f"data.targets=['{options.target}']", "data.held_out=0", f"seed={options.seed}"]
    recipe = load_recipe(variant.recipe, [*length, *chosen, *variant.changes])
    paired, others = link_parts(variant.paired, options)
    unpaired = others if variant.unpaired else None
    return train_once(recipe, TrainingPaths(paired, run, _cache(variant, options), None, unpaired))


def _cache(variant: Variant, options: argparse.Namespace) -> Path:
    """One for each normalisation and choice of subjects."""
    own = "" if variant.recipe == "ds3net_compact" else f"-{variant.recipe}"
    place: Path = options.out / f"cache-{variant.paired}{own}"
    return place


def link_parts(count: int, options: argparse.Namespace) -> tuple[Path, Path | None]:
    """Links the data: so many complete subjects, and the others without the target; None where none is left."""
    cases = sorted((c for c in scan(options.data).cases if len(c.files) == len(MODALITIES)), key=lambda c: c.subject)
    order = np.random.default_rng(options.seed).permutation(len(cases))
    paired, others = options.out / f"paired-{count}", options.out / f"unpaired-{count}"
    masks = find_segmentations(options.data, cases)
    for place, number in enumerate(order):
        whole = count == 0 or place < count
        _link(cases[number], masks.get(cases[number].subject), paired if whole else others,
              None if whole else options.target)  # fmt: skip
    return paired, others if others.exists() else None


def _link(case: Case, mask: Path | None, folder: Path, withheld: Modality | None) -> None:
    place = folder / case.subject
    place.mkdir(parents=True, exist_ok=True)
    for file in (*(f for m, f in case.files.items() if m != withheld), *([mask] if mask is not None else [])):
        link = place / file.name
        if not link.is_symlink():
            link.symlink_to(file)


def _score(state: State, variant: Variant, options: argparse.Namespace) -> list[VolumeScores]:
    """Scores what the network makes of complete subjects without the target."""
    folders = options.out / f"paired-{variant.paired}", _cache(variant, options)
    recipe = state.recipe
    assert isinstance(recipe, Ds3NetRecipe | SynthesisRecipe)
    if isinstance(recipe, Ds3NetRecipe):
        network: SliceGenerator = Ds3NetSliceGenerator(recipe.architecture)
        spec = recipe.spec
    else:
        network, spec = new_generator(generator_config(recipe)), generator_spec(recipe, generator_config(recipe), None)
    if variant.network == "average":
        state.load_into(network)
    else:
        network.load_state_dict(state.networks[variant.network])
    subjects = build_cache(*folders, recipe.normalization.build())
    predictor = IntensityPredictor.from_json(fit_intensity([s.intensities for s in subjects]))
    model = validation.candidate_model(network.eval(), spec, predictor, torch.device("cpu"))
    segmenter = TumourSegmenter.open(read_manifest(WEIGHTS_DIR).entry("tumour_segmenter"), "cpu")
    target: Modality = options.target
    cases = scan(options.validation).cases
    masks, rows = find_segmentations(options.validation, cases), []
    for subject, volumes in load_complete(cases):
        grid, real = volumes["t1n"].grid, volumes[target].data
        truth = load_labels(masks.get(subject), grid, subject)
        if truth is None:
            continue
        inputs = {m: v for m, v in volumes.items() if m != target}
        made = to_array(synthesize_case(inputs, target, REFERENCE_OF[target], model).image, grid)
        p, t = rescale_as_scored(made), rescale_as_scored(real)
        squared = float(((p - t) ** 2).mean())
        labels = segmenter.segment({**{m: v.data for m, v in inputs.items()}, target: made})
        rows.append(VolumeScores(subject, target, {
            **image_scores(made, real, truth > 0, grid.lps_spacing),
            "ssim_whole": mean_ssim(p, t, "keep"), "mse_whole": squared, "psnr_whole": -10 * np.log10(squared),
            **segmentation_scores(labels, truth, grid.lps_spacing),
        }))  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
