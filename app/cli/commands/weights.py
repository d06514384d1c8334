"""The commands that make and move weights: export, import-weights, fit-regression, fit-normalization, weights."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from app.cli.argument_types import factor, path, share, views
from app.core.config import FUSIONS, WEIGHTS_DIR
from app.core.errors import ExitCode, UsageError

log = logging.getLogger(__name__)


def add_export(commands: Any) -> None:
    """Declare the command `export`."""
    p = commands.add_parser(
        "export",
        help="write a trained run as a model, or a model's ONNX",
        description="With RUN: writes its averaged weights as safetensors and ONNX with their manifest entry, unless "
        "they score worse than the model before. Without: adds the ONNX file to a model.",
    )
    p.add_argument("run", type=path, nargs="?", metavar="RUN", help="a run folder of `train`")
    p.add_argument("--weights", type=path, default=WEIGHTS_DIR, metavar="DIR", help="folder with manifest.json")
    p.add_argument("--model", metavar="NAME", help="what --model calls it; default: the manifest's default")
    p.add_argument("--data", type=path, metavar="DIR", help="what the run was trained on")
    p.add_argument("--cache", type=path, metavar="DIR", help="its prepared arrays; default: RUN/cache")
    p.add_argument("--score-on", type=path, metavar="DIR", help="complete subjects that the run has not seen")
    p.add_argument(
        "--contrast",
        type=share,
        metavar="C",
        help="how far its result is brought to a scan's spread, 0 to 1; default: the recipe's",
    )
    p.add_argument(
        "--highlights",
        type=factor,
        metavar="F",
        help="factor on what of its result is brighter than the median, 0 to 3, 1 leaves it; default: the recipe's",
    )
    p.add_argument(
        "--detail",
        type=factor,
        metavar="F",
        help="factor on the fine detail of what it makes, 0 to 3, 1 leaves it; default: the recipe's",
    )
    p.add_argument(
        "--start-share",
        type=share,
        default=0.0,
        metavar="S",
        help="the weights are so much those that the run began with (train --start), which --weights still holds; "
        "0 to 1, default: 0",
    )
    p.add_argument("--fusion", choices=FUSIONS, help="how its views become one volume; default: the recipe's")
    p.add_argument(
        "--flip-average",
        action=argparse.BooleanOptionalAction,
        help="whether it also runs the exam mirrored and averages both; default: the recipe's",
    )
    p.add_argument("--views", type=views, metavar="VIEW,...", help="those of its views that it runs; default: all")
    p.add_argument(
        "--make-default", action="store_true", help="make it the manifest's default; a refiner, its generator's"
    )
    p.add_argument(
        "--specialist-of",
        metavar="NAME",
        help="for a run that makes some of the sequences only (data.targets): model NAME leaves them to it from now on",
    )
    p.add_argument("--refines", metavar="NAME", help="for an enhancer: the model whose T1c it is for")
    p.add_argument("--force", action="store_true", help="also without scores, or with worse ones")
    p.add_argument("--device", default="auto", help="as in synthesize")
    p.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> int:
    from app.registry.manifest import read_manifest
    from app.registry.onnx_export import export_onnx

    if options.run is None:
        entry = export_onnx(read_manifest(options.weights).entry(options.model))
        log.info("%s has %s now.", entry.name, entry.folder / entry.files["onnx"].path)
        return ExitCode.OK
    from app.training.export import export_run

    if options.data is None or options.model is None:
        raise UsageError("export RUN needs --data (what the run was trained on) and --model (the new model's name).")
    entry = export_run(
        options.run,
        options.weights,
        options.model,
        data=options.data,
        cache=options.cache,
        score_on=options.score_on,
        start_share=options.start_share,
        contrast=options.contrast,
        highlights=options.highlights,
        detail=options.detail,
        fusion=options.fusion,
        flip_average=options.flip_average,
        views=options.views,
        make_default=options.make_default,
        specialist_of=options.specialist_of,
        refines=options.refines,
        force=options.force,
        device=options.device,
    )
    scores = read_manifest(entry.folder).lineage.scores_of(entry.sha256)
    for metric, value in ({} if scores is None else scores.mean).items():
        log.info("%-24s %.4f", metric, value)
    log.info("Written: model %s of %s.", entry.name, entry.folder)
    return ExitCode.OK


def add_import(commands: Any) -> None:
    """Declares the command `import-weights`."""
    p = commands.add_parser("import-weights", help="bring a public checkpoint into Tetrad's format")
    p.add_argument("file", type=path, metavar="FILE", help="the released .safetensors file")
    p.add_argument("--kind", choices=["brasyn25"], required=True)
    p.add_argument("--weights", type=path, required=True, metavar="DIR", help="folder that gets it; made if need be")
    p.add_argument("--name", default="brasyn25", help="what --model will call it; default: brasyn25")
    p.add_argument("--views", type=views, default=("sagittal",), metavar="VIEW,...", help="default: sagittal")
    p.set_defaults(command=_import)


def _import(options: argparse.Namespace) -> int:
    from app.registry.brasyn25 import import_checkpoint

    entry = import_checkpoint(options.file, options.kind, options.weights, options.name, options.views)
    log.info("Imported as model %s of %s; use: --weights %s", entry.name, entry.folder, entry.folder)
    return ExitCode.OK


def add_weights(commands: Any) -> None:
    """Declares the command `weights`."""
    p = commands.add_parser("weights", help="look after a folder of weights")
    actions = p.add_subparsers(required=True, metavar="ACTION")
    upgrade = actions.add_parser("upgrade", help="bring a folder that version 0.1 wrote to today's form")
    upgrade.add_argument("folder", type=path, metavar="DIR", help="folder with manifest.json")
    upgrade.set_defaults(command=_upgrade)
    again = actions.add_parser(
        "rescore", help="score a generator anew, as it runs by default and without specialists, for the lineage"
    )
    again.add_argument("folder", type=path, metavar="DIR", help="folder with manifest.json")
    again.add_argument("--model", required=True, metavar="NAME", help="the generator; where it is refined by default, "
                       "the scores are its refiner's")  # fmt: skip
    again.add_argument(
        "--score-on", type=path, required=True, metavar="DIR", help="complete subjects that it has not seen"
    )
    again.add_argument("--device", default="auto", help="as in synthesize")
    again.set_defaults(command=_rescore)

    calibrate = actions.add_parser(
        "calibrate", help="measure a plain U-Net on exams, so that processors can run it in eight bits (int8)"
    )
    calibrate.add_argument("folder", type=path, metavar="DIR", help="folder with manifest.json")
    calibrate.add_argument("--model", required=True, metavar="NAME", help="the generator")
    calibrate.add_argument(
        "--data", type=path, required=True, metavar="DIR", help="complete subjects, such as it was trained on"
    )
    calibrate.set_defaults(command=_calibrate)


def _upgrade(options: argparse.Namespace) -> int:
    from app.registry.upgrade import upgrade_folder

    log.info("%s: %d models are of today's form now.", options.folder, upgrade_folder(options.folder))
    return ExitCode.OK


def _rescore(options: argparse.Namespace) -> int:
    from app.training.promotion.rescoring import rescore

    scores = rescore(options.folder, options.model, options.score_on, options.device)
    for metric, value in scores.mean.items():
        log.info("%-24s %.4f", metric, value)
    return ExitCode.OK


def _calibrate(options: argparse.Namespace) -> int:
    from app.training.fits.int8_ranges import calibrate

    entry = calibrate(options.folder, options.model, options.data)
    log.info("%s has %s now.", entry.name, entry.folder / entry.files["int8"].path)
    return ExitCode.OK


def add_fit(commands: Any) -> None:
    """Declares the command `fit-regression`."""
    p = commands.add_parser("fit-regression", help="fit the voxel-wise regression and the intensity predictor")
    p.add_argument("--data", type=path, required=True, metavar="DIR", help="folder of complete subjects")
    p.add_argument("--weights", type=path, default=WEIGHTS_DIR, metavar="DIR", help="folder that gets them")
    p.set_defaults(command=_fit)


def _fit(options: argparse.Namespace) -> int:
    from app.registry.manifest import read_manifest
    from app.training.fits.intensity import fit_and_write

    entry = fit_and_write(options.data, options.weights)
    subjects = read_manifest(entry.folder).lineage.trainings[entry.sha256].subjects
    log.info("Fitted on %d subjects: model %s of %s.", len(subjects), entry.name, entry.folder)
    return ExitCode.OK


def add_fit_normalization(commands: Any) -> None:
    """Declare the command `fit-normalization`."""
    p = commands.add_parser(
        "fit-normalization",
        help="fit the constants of recipes with normalization.scheme = 'dataset'",
        description="Counts the non-zero voxels of all complete subjects, in constant memory. Writes the 99.5th "
        "percentile of each sequence, and mean and deviation below it, for --set normalization.file=FILE.",
    )
    p.add_argument("--data", type=path, required=True, metavar="DIR", help="folder of complete subjects")
    p.add_argument("--out", type=path, required=True, metavar="FILE", help="gets the constants, as JSON")
    p.set_defaults(command=_fit_normalization)


def _fit_normalization(options: argparse.Namespace) -> int:
    from app.training.data.normalization_fit import fit_and_write_normalization

    for modality, i in fit_and_write_normalization(options.data, options.out).items():
        log.info("%s: clip %g, mean %g, deviation %g", modality, i.clip, i.mean, i.std)
    log.info("Use: train RECIPE --set normalization.scheme=dataset --set normalization.file=%s", options.out)
    return ExitCode.OK
