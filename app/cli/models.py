"""The commands that make and move weights: export, import-weights, fit-regression, train."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from app.cli.arguments import natural, path, positive, views
from app.config import WEIGHTS_DIR
from app.errors import ExitCode

log = logging.getLogger(__name__)


def add_export(commands: Any) -> None:
    """Declares the command `export`."""
    p = commands.add_parser("export", help="write a generator as ONNX beside its weights, for --backend onnx")
    p.add_argument("--weights", type=path, default=WEIGHTS_DIR, metavar="DIR", help="folder with manifest.json")
    p.add_argument("--model", metavar="NAME", help="default: the manifest's default")
    p.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> int:
    from app.export import export_onnx
    from app.weights import read_manifest

    entry = export_onnx(read_manifest(options.weights).entry(options.model))
    log.info("%s has %s now.", entry.name, entry.folder / entry.files["onnx"]["path"])
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
    from app.weights import import_checkpoint

    entry = import_checkpoint(options.file, options.kind, options.weights, options.name, options.views)
    log.info("Imported as model %s of %s; use: --weights %s", entry.name, entry.folder, entry.folder)
    return ExitCode.OK


def add_fit(commands: Any) -> None:
    """Declares the command `fit-regression`."""
    p = commands.add_parser("fit-regression", help="fit the voxel-wise regression and the intensity predictor")
    p.add_argument("--data", type=path, required=True, metavar="DIR", help="folder of complete subjects")
    p.add_argument("--weights", type=path, default=WEIGHTS_DIR, metavar="DIR", help="folder that gets them")
    p.set_defaults(command=_fit)


def _fit(options: argparse.Namespace) -> int:
    from app.training.regression import fit_and_write

    entry = fit_and_write(options.data, options.weights)
    log.info("Fitted on %d subjects: model %s of %s.", entry.details["training"]["subjects"], entry.name, entry.folder)
    return ExitCode.OK


def add_train(commands: Any) -> None:
    """Declares the command `train`."""
    p = commands.add_parser("train", help="train a generator on a folder of complete subjects")
    p.add_argument("--data", type=path, required=True, metavar="DIR", help="folder of complete subjects")
    p.add_argument("--weights", type=path, required=True, metavar="DIR", help="folder that gets the model")
    p.add_argument("--name", default="trained", help="what --model will call it; default: trained")
    p.add_argument("--cache", type=path, required=True, metavar="DIR", help="prepared arrays, 40 MB a subject; reused")
    p.add_argument("--preset", choices=["compact", "half", "full"], default="compact")
    p.add_argument("--budget-minutes", type=float, default=30.0, metavar="M", help="default: 30")
    p.add_argument("--steps", type=positive, metavar="N", help="end after so many batches, if earlier")
    p.add_argument("--batch-size", type=positive, default=8, metavar="N", help="slices per batch; default: 8")
    p.add_argument("--learning-rate", type=float, default=1e-3, metavar="R", help="peak; default: 0.001")
    p.add_argument("--device", default="cpu", help="cpu or cuda[:N]; default: cpu")
    p.add_argument("--seed", type=natural, default=0)
    p.set_defaults(command=_train)


def _train(options: argparse.Namespace) -> int:
    from app.inference import Machine, choose_device
    from app.training.generator import TrainingConfig, train_generator

    config = TrainingConfig(
        preset=options.preset,
        budget_minutes=options.budget_minutes,
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=options.seed,
        device=choose_device(options.device, Machine.probe())[0],
    )
    entry = train_generator(options.data, options.cache, options.weights, options.name, config)
    log.info("Trained: model %s of %s, %s steps.", entry.name, entry.folder, entry.details["training"]["steps"])
    return ExitCode.OK
