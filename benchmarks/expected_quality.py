"""What a model's sequences are expected to be worth: fitted to subjects left out by turns, and held against others.

Usage: `python -m benchmarks expected_quality --data TRAIN --validation DIR [DIR ...] --out OUT [--folds 4]
[--minutes 13] [--weights DIR]`. Each fold trains the recipe `unet` without its share of TRAIN for so many minutes of
processor time; set OMP_NUM_THREADS=1. Of each subject left out each sequence is dropped, and made from three views
without the mirrored exam, with the contrast, the highlights and the fine detail of the default model. What tells its
SSIM and PSNR is fitted to all of these (`app.training.fits.expected_quality`) and written to OUT/quality.json; with
`--weights` it is added to the default model of that folder and its specialists. A fold that is done is not trained
again, and not scored again for the same models.

The first table tells how far off the estimates are for a subject that is left out of the fit, beside those by the
sequence alone; a line says how many exams would be called unlike all others. The second table holds the expectations
against what the default model reaches on `--validation`, and OUT/expected.png shows both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from app.core.atomic_io import save_bytes
from app.core.config import WEIGHTS_DIR
from app.core.constants import MODALITIES, REFERENCE_OF, Modality
from app.core.json_text import readable_json
from app.data.discovery import scan
from app.data.loading import load_complete
from app.data.nifti_writer import to_array
from app.evaluation.metrics.image import image_scores
from app.inference.models import NetworkModel
from app.inference.pipeline import finish, predict, prepare
from app.inference.synthesizer import Synthesizer
from app.inference.trial import trial_ssim
from app.preprocessing.expected_quality import FEATURES, Estimate, Expectation, QualityModel
from app.registry.manifest import Entry, Manifest, add_file, read_manifest
from app.registry.spec import GeneratorSpec
from app.report.plotting import figure_class
from app.training.config import load_recipe
from app.training.fits.expected_quality import LeftOut, fit_quality, left_out_estimates, ranges_of
from app.training.trainer import TrainingPaths
from benchmarks._common import as_png
from benchmarks._training import generator_of, train_once

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Observed:
    """What a sequence reached, and what was expected of it."""

    row: LeftOut
    expectation: Expectation

    @property
    def ssim(self) -> Estimate:
        """The expected SSIM."""
        assert self.expectation.ssim is not None
        return self.expectation.ssim


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--validation", type=lambda text: Path(text).resolve(), nargs="+", required=True)
    parser.add_argument("--out", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=13.0, help="of processor time, for each fold")
    parser.add_argument("--weights", type=Path, help="gets the fit")
    options = parser.parse_args()
    if len({folder.name for folder in options.validation}) < len(options.validation):
        parser.error("two folders of --validation have one name")
    manifest = read_manifest(WEIGHTS_DIR if options.weights is None else options.weights)
    rows: list[LeftOut] = []
    for fold in range(options.folds):
        found = _fold(fold, options, manifest)
        if found is None:
            return
        rows.extend(found)
    default = manifest.entry()
    exams = _statistics(options.data, manifest)
    quality = fit_quality(rows, exams, default.sha256)
    content = readable_json(quality.to_json())
    save_bytes(content, options.out / "quality.json")
    _print_left_out(rows)
    _print_unlike(quality, exams)
    pairs = {folder.name: _observed(folder, options.out, quality, manifest) for folder in options.validation}
    _print_observed(pairs)
    save_bytes(_plot(rows, pairs), options.out / "expected.png")
    if options.weights is not None:
        for entry in (default, *manifest.specialists_of(default).values()):
            add_file(entry, "quality", content)


def _fold(fold: int, options: argparse.Namespace, manifest: Manifest) -> list[LeftOut] | None:
    """Trains without a share of the subjects, and scores these; None when a signal ended it."""
    # Another number of folds, or of minutes, is another place: nothing of one may reach the other.
    place = options.out / f"{options.folds}-folds-{options.minutes:g}-minutes" / str(fold)
    kept = place / f"rows-{_mark(manifest)}.json"
    if not kept.exists():
        # Each in turn, in the order of their names: the sites are spread over the folds.
        folders = sorted(f for f in options.data.iterdir() if f.is_dir())
        for number, folder in enumerate(folders):
            link = place / ("left-out" if number % options.folds == fold else "train") / folder.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(folder)
        length = [f"schedule.budget_minutes={options.minutes}", "schedule.steps=0", "schedule.epoch_steps=100000"]
        recipe = load_recipe("unet", [*length, f"seed={fold}", "data.held_out=0"])
        state = train_once(recipe, TrainingPaths(place / "train", place / "run", place / "cache"))
        if state is None:
            return None
        model = _finished_as_default(generator_of(state, place / "train", place / "cache"), manifest)
        found = _rows(model, place / "left-out")
        save_bytes(json.dumps([asdict(row) for row in found]).encode(), kept)
    return [LeftOut.from_json(row) for row in json.loads(kept.read_text())]


def _makers(manifest: Manifest) -> dict[Modality, Entry]:
    """What makes each sequence by default."""
    default = manifest.entry()
    return dict.fromkeys(MODALITIES, default) | manifest.specialists_of(default)


def _mark(manifest: Manifest) -> str:
    """A short name of the default and its specialists: what was scored for others is not theirs."""
    fingerprints = " ".join(entry.identity.fingerprint for entry in _makers(manifest).values())
    return hashlib.sha256(fingerprints.encode()).hexdigest()[:8]


def _finished_as_default(model: NetworkModel, manifest: Manifest) -> NetworkModel:
    """A model whose results become volumes as those of the default and its specialists do."""
    makers = {}
    for target, entry in _makers(manifest).items():
        shipped = entry.spec
        assert isinstance(shipped, GeneratorSpec)
        steps = {name: getattr(shipped, name) for name in ("contrast", "highlights", "detail")}
        makers[target] = replace(model, spec=model.spec.model_copy(update=steps))
    return replace(model, specialists=makers)


def _rows(model: NetworkModel, folder: Path) -> list[LeftOut]:
    """Makes each sequence of each complete exam from the others, and scores it."""
    rows = []
    for subject, volumes in load_complete(scan(folder).cases):
        for target in model.targets:
            reference, maker = REFERENCE_OF[target], model.model_for(target)
            prepared = prepare({m: v for m, v in volumes.items() if m != target}, maker)
            fused = predict(prepared, target, maker)
            made = to_array(finish(fused.volume, prepared, target, reference, maker), prepared.grids[reference])
            values = image_scores(made, volumes[target].data, None, volumes[target].grid.lps_spacing)
            trial = trial_ssim(prepared, maker.trial_model or maker)
            assert trial is not None and fused.disagreement is not None
            ssim, psnr = values["ssim_brain"], values["psnr_brain"]
            rows.append(LeftOut(subject, target, prepared.statistics, trial, fused.disagreement, ssim, psnr))
        log.warning("%s is scored.", subject)
    return rows


def _statistics(data: Path, manifest: Manifest) -> list[dict[str, float]]:
    """Measures the complete exams that the default learnt from."""
    model = Synthesizer(weights=manifest.folder, device="cpu").model
    return [prepare(volumes, model).statistics for _, volumes in load_complete(scan(data).cases)]


def _observed(folder: Path, out: Path, quality: QualityModel, manifest: Manifest) -> list[Observed]:
    """What the default model reaches, with what was expected of it."""
    kept = out / f"{folder.name}-{_mark(manifest)}.json"
    if not kept.exists():
        model = Synthesizer(weights=manifest.folder, device="cpu", flip_average=False, refine=False).model
        assert isinstance(model, NetworkModel)
        save_bytes(json.dumps([asdict(row) for row in _rows(model, folder)]).encode(), kept)
    rows = [LeftOut.from_json(form) for form in json.loads(kept.read_text())]
    return [Observed(r, quality.expect(r.statistics, r.target, r.trial, r.disagreement)) for r in rows]


def _print_left_out(rows: Sequence[LeftOut]) -> None:
    scores = {"SSIM": [row.ssim for row in rows], "PSNR, dB": [row.psnr for row in rows]}
    print("| left out by turns | spread of the score | off, by the sequence alone | off, by all | correlation |")
    print("|---|---|---|---|---|")
    for name, values in scores.items():
        observed = np.array(values)
        plain, full = (left_out_estimates(rows, observed, used) for used in ((), FEATURES))
        off = [float(np.abs(observed - estimate).mean()) for estimate in (plain, full)]
        related = np.corrcoef(observed - plain, full - plain)[0, 1]
        print(f"| {name} | {observed.std():.3f} | {off[0]:.4f} | {off[1]:.4f} | {related:.2f} |")


def _print_unlike(quality: QualityModel, exams: Sequence[Mapping[str, float]]) -> None:
    """How many exams would be called unlike all others."""
    others = [replace(quality, ranges=ranges_of([*exams[:i], *exams[i + 1 :]])) for i in range(len(exams))]
    count = sum(bool(model.unlike(exam)) for model, exam in zip(others, exams, strict=True))
    print(f"\n{count} of {len(exams)} exams are unlike all others.")


def _print_observed(pairs: Mapping[str, Sequence[Observed]]) -> None:
    print("\n| exams | sequence | n | expected SSIM | observed | off | in the interval | unlike |\n" + "|---" * 8 + "|")
    for folder, found in pairs.items():
        for target in (*MODALITIES, None):
            part = [o for o in found if target in (None, o.row.target)]
            expected, observed = np.array([o.ssim.value for o in part]), np.array([o.row.ssim for o in part])
            inside = sum(o.ssim.low <= o.row.ssim <= o.ssim.high for o in part)
            strange = sum(bool(o.expectation.unlike) for o in part)
            cells = [folder, target or "all", len(part), f"{expected.mean():.3f}", f"{observed.mean():.3f}",
                     f"{np.abs(expected - observed).mean():.3f}", inside, strange]  # fmt: skip
            print(f"| {' | '.join(map(str, cells))} |")


def _plot(rows: Sequence[LeftOut], pairs: Mapping[str, Sequence[Observed]]) -> bytes:
    """Draws observed over expected SSIM as PNG: subjects left out, and those of `--validation` with their intervals."""
    figure = figure_class()(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    observed = np.array([row.ssim for row in rows])
    axes.scatter(left_out_estimates(rows, observed), observed, s=8, color="0.7", label="left out by turns")
    for folder, found in pairs.items():
        middle = [o.ssim.value for o in found]
        ends = [[o.ssim.value - o.ssim.low for o in found], [o.ssim.high - o.ssim.value for o in found]]
        axes.errorbar(middle, [o.row.ssim for o in found], xerr=ends, fmt="o", ms=4, lw=0.5, label=folder)
    limits = (min(observed) - 0.05, 1.0)
    axes.plot(limits, limits, color="black", lw=0.8)
    axes.set(xlabel="expected SSIM in the brain", ylabel="observed", xlim=limits, ylim=limits)
    axes.legend()
    return as_png(figure)


if __name__ == "__main__":
    main()
