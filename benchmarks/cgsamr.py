"""What CG-SAMR's parts give, and what its exams teach a segmenter: tables I to V of its paper at small scale.

Usage: `python -m benchmarks cgsamr --data TRAIN --validation DIR --out DIR [--minutes 60] [--seed 0] [--only NAME,...]
[--segment LESIONS] [--exams 32] [--steps 2000]`.

Each variant trains `cgsamr_compact` with one thing changed, or `ucgsamr_compact`, for M minutes of processor time (set
OMP_NUM_THREADS=1) from random weights and one seed; the plain Pix2Pix has as many weights as the generator. The
first table has the share of right pixels (within 16 of 255) per lesion part, SSIM and PSNR of exams made from the
outlines of `--validation`, means over the four sequences; the second the same by sequence. UCG-SAMR has one more, the
Dice of what it segments.

With `--segment` each chosen variant then makes exams of the lesions given (a folder of masks, or label maps), grown,
shrunk, mirrored and moved, in the brains of `--data`, and the 2D segmenter is trained on real exams alone and with a
share of 25 % and 50 % of these, all for as many updates. The third table has its Dice on `--validation`; the last the
differences to real exams alone, with intervals. What is done already is not run again.
"""

from __future__ import annotations

import argparse
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch

from app.core.config import RuntimeOptions
from app.core.constants import MODALITIES
from app.data.discovery import scan
from app.data.labels import load_labels
from app.data.loading import load_complete
from app.data.segmentations import find_segmentations
from app.evaluation.metrics.segmentation import segmentation_scores
from app.evaluation.scoring import VolumeScores
from app.evaluation.statistics import compare, comparison_table
from app.inference.device import Machine, choose_runtime
from app.inference.simulation.exam_files import RECORD
from app.inference.simulation.run import SimulationOptions, simulate
from app.inference.simulation.simulator import ExamSimulator
from app.inference.tumour.outlines import OutlineModel
from app.networks.cgsamr import new_simulator
from app.networks.cgsamr.unpaired import UcgSamr
from app.networks.unet import Segmenter2d
from app.registry.identity import Identity
from app.training.checkpoint import LAST, State, load_state
from app.training.config import load_recipe
from app.training.data.cache import build_cache
from app.training.tasks.cgsamr.outlines import training_atlas
from app.training.tasks.cgsamr.recipe import OutlineRecipe
from app.training.tasks.cgsamr.scoring import score_simulator
from app.training.tasks.segmentation2d import Segmentation2dRecipe
from app.training.trainer import TrainingPaths
from app.training.validation import SEGMENTATION_METRICS, score_segmenter2d
from benchmarks._common import choose
from benchmarks._training import kept_scores, train_once

#: As in the paper: of the average brain alone.
ATLAS = "cgsamr.prior='atlas'"
#: The plain baseline: one discriminator of the whole slice, and its usual weight of the error.
PIX2PIX = [ATLAS, "cgsamr.form='pix2pix'", "cgsamr.labelwise=false", "cgsamr.scales=1", "losses.feature=0",
           "losses.shape=0", "losses.confidence=0"]  # fmt: skip
#: Recipe and changes of each variant.
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "CG-SAMR": ("cgsamr_compact", [ATLAS]),
    "Pix2Pix": ("cgsamr_compact", PIX2PIX),
    "without stretch-out": ("cgsamr_compact", [ATLAS, "cgsamr.stretch_out=false"]),
    "without label-wise discriminators": ("cgsamr_compact", [ATLAS, "cgsamr.labelwise=false"]),
    "without atlas": ("cgsamr_compact", ["cgsamr.prior='none'"]),
    "without shape consistency": ("cgsamr_compact", [ATLAS, "losses.shape=0"]),
    "without confidence": ("cgsamr_compact", [ATLAS, "cgsamr.confidence=false", "losses.confidence=0"]),
    "as published": (
        "cgsamr_compact",
        [
            ATLAS,
            "losses.adversarial=1",
            "losses.feature=5",
            "losses.l1=0",
            "cgsamr.up='transposed'",
            "cgsamr.skip=false",
        ],
    ),
    "with own tissue": ("cgsamr_compact", []),
    "UCG-SAMR": ("ucgsamr_compact", []),
}
SHARES = (0.25, 0.5)
COLUMNS = ("accuracy_core", "accuracy_oedema", "accuracy_enhancing", "accuracy_tumour", "ssim_brain", "psnr_brain",
           "stripe_superior")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--validation", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0, help="of processor time, for each variant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="names of variants, separated by commas")
    parser.add_argument("--segment", type=lambda text: Path(text).resolve(), metavar="LESIONS")
    parser.add_argument("--exams", type=int, default=32, help="simulated by each variant for the segmenter")
    parser.add_argument("--steps", type=int, default=2000, help="updates of each segmenter")
    options = parser.parse_args()
    chosen = choose(VARIANTS, options.only, parser)
    scores: dict[str, list[VolumeScores]] = {}
    steps: dict[str, int] = {}
    for name in chosen:
        state = _trained(name, options)
        if state is None:
            return
        steps[name] = state.step
        place = _folder(name, options.out) / "scores.json"
        scores[name] = kept_scores(place, partial(_scored, state, options))
    _print_images(scores, steps, options.minutes)
    if "UCG-SAMR" in chosen:
        _print_outlines(load_state(_folder("UCG-SAMR", options.out) / LAST), options)
    if options.segment is not None:
        _segment(chosen, options)


# ------------------------------------------------------------ simulators


def _folder(name: str, out: Path) -> Path:
    return out.joinpath(name.replace(" ", "-"))


def _trained(name: str, options: argparse.Namespace) -> State | None:
    """Trains one variant unless that is done; None when a signal ended it."""
    recipe, changes = VARIANTS[name]
    length = [f"schedule.budget_minutes={options.minutes}", "schedule.epoch_steps=100000", f"seed={options.seed}"]
    paths = TrainingPaths(options.data, _folder(name, options.out), options.out / "cache")
    return train_once(load_recipe(recipe, [*length, *changes]), paths)


def _simulator(state: State, options: argparse.Namespace) -> ExamSimulator:
    recipe = state.recipe
    assert isinstance(recipe, OutlineRecipe)
    subjects = {s.name: s for s in build_cache(options.data, options.out / "cache", recipe.normalization.build())}
    atlas = training_atlas(recipe.data, [subjects[n] for n in state.subjects], options.data)
    network = new_simulator(recipe.architecture)
    state.load_into(network)
    return ExamSimulator(network.eval(), recipe.architecture, recipe.data.canvas, atlas, torch.device("cpu"))


def _scored(state: State, options: argparse.Namespace) -> list[VolumeScores]:
    cases = scan(options.validation).cases
    return score_simulator(_simulator(state, options), cases, find_segmentations(options.validation, cases))


def _print_images(scores: dict[str, list[VolumeScores]], steps: dict[str, int], minutes: float) -> None:
    print(f"| {minutes:g} minutes each | steps | " + " | ".join(COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for name, rows in scores.items():
        print(f"| {name} | {steps[name]} | {_cells(rows)} |")
    print("\n| by sequence | | " + " | ".join(COLUMNS) + " |")
    print("|---" * (2 + len(COLUMNS)) + "|")
    for name, rows in scores.items():
        for m in MODALITIES:
            print(f"| {name} | {m} | {_cells([r for r in rows if r.modality == m])} |")


def _cells(rows: list[VolumeScores]) -> str:
    means = {c: np.nanmean([r.values[c] for r in rows]) if rows else np.nan for c in COLUMNS}
    return " | ".join(f"{value:.1f}" if c.startswith("psnr") else f"{value:.3f}" for c, value in means.items())


def _print_outlines(state: State, options: argparse.Namespace) -> None:
    """Prints what UCG-SAMR finds in the real exams by F1(E2(y)): table IV."""
    recipe = state.recipe
    assert isinstance(recipe, OutlineRecipe)
    network = UcgSamr(recipe.architecture)
    state.load_into(network)
    runtime = choose_runtime({"torch"}, Machine.probe(), RuntimeOptions("cpu", "torch", "fp32"))
    scheme, canvas = recipe.normalization.build(), recipe.data.canvas
    model = OutlineModel(Identity("UCG-SAMR", "0" * 64), network.eval(), scheme, canvas, runtime)
    cases = scan(options.validation).cases
    masks, rows = find_segmentations(options.validation, cases), []
    for subject, volumes in load_complete(cases):
        grid = volumes[MODALITIES[0]].grid
        truth = load_labels(masks.get(subject), grid, subject)
        if truth is not None:
            labels = model.labels({m: v.data for m, v in volumes.items()})
            rows.append(segmentation_scores(labels, truth, grid.lps_spacing))
    print("\n| UCG-SAMR segments | " + " | ".join(SEGMENTATION_METRICS) + " |")
    print("|---" * (1 + len(SEGMENTATION_METRICS)) + "|")
    means = (np.nanmean([row[m] for row in rows]) if rows else np.nan for m in SEGMENTATION_METRICS)
    print(f"| {len(rows)} exams | " + " | ".join(f"{v:.3f}" for v in means) + " |")


# ------------------------------------------------------------ segmenters


def _segment(chosen: list[str], options: argparse.Namespace) -> None:
    """Tables of segmenters that were trained with and without simulated exams."""
    rows = {"real alone": _segmenter("real alone", 0.0, None, options)}
    for name in chosen:
        exams = _exams(name, options)
        for share in SHARES:
            label = f"{share:.0%} {name}"
            rows[label] = _segmenter(label, share, exams, options)
    print(f"\n| {options.steps} updates each | " + " | ".join(SEGMENTATION_METRICS) + " |")
    print("|---" * (1 + len(SEGMENTATION_METRICS)) + "|")
    for label, found in rows.items():
        means = (np.nanmean([r.values[m] for r in found]) for m in SEGMENTATION_METRICS)
        print(f"| {label} | " + " | ".join(f"{v:.3f}" for v in means) + " |")
    for label, found in rows.items():
        if label != "real alone":
            different = compare(found, rows["real alone"])
            kept = {m: different[m] for m in SEGMENTATION_METRICS if m in different}
            print(f"\n{label}\n\n{comparison_table(kept, 'real alone')}")


def _exams(name: str, options: argparse.Namespace) -> Path:
    """Exams of a variant; made again where they are not all there."""
    place: Path = options.out / "exams" / _folder(name, Path()).name
    done = len(list(place.glob("synthetic-*"))) if (place / RECORD).is_file() else 0
    if done != options.exams:
        shutil.rmtree(place, ignore_errors=True)
        state = load_state(_folder(name, options.out) / LAST)
        wanted = SimulationOptions(
            options.segment, place, options.data, True, options.exams, (0.5, 2.0), True, True, options.seed
        )
        simulate(wanted, _simulator(state, options), Identity(name, "0" * 64), state.seen)
    return place


def _segmenter(label: str, share: float, exams: Path | None, options: argparse.Namespace) -> list[VolumeScores]:
    run = options.out / "segmenters" / label.replace(" ", "-").replace("%", "")
    changes = [f"schedule.steps={options.steps}", "schedule.budget_minutes=0", "schedule.epoch_steps=100000",
               "data.views=['axial']", f"data.simulated_share={share}", f"seed={options.seed}"]  # fmt: skip
    paths = TrainingPaths(options.data, run, options.out / "cache-segmenters", simulated=exams)
    state = train_once(load_recipe("segmenter", changes), paths) or load_state(run / LAST)
    recipe = state.recipe
    assert isinstance(recipe, Segmentation2dRecipe)
    network = Segmenter2d()
    state.load_into(network)
    cases = scan(options.validation).cases
    masks = find_segmentations(options.validation, cases)
    return score_segmenter2d(
        network.eval(), cases, masks, recipe.data, torch.device("cpu"), recipe.normalization.build()
    )


if __name__ == "__main__":
    main()
