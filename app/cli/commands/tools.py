"""Offer the commands to try things out: info, demo, phantom."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from app.cli.argument_types import natural, path, positive
from app.core.config import WEIGHTS_DIR
from app.core.constants import MODALITIES
from app.core.errors import ExitCode

log = logging.getLogger(__name__)

#: Smaller than a head, large enough for every step.
PHANTOM_SHAPE = (80, 96, 72)


def add_info(commands: Any) -> None:
    """Declare the command `info`."""
    p = commands.add_parser("info", help="models, devices and versions")
    p.add_argument("--weights", type=path, default=WEIGHTS_DIR, metavar="DIR", help="folder with manifest.json")
    p.set_defaults(command=_info)


def _info(options: argparse.Namespace) -> int:
    from app.cli.commands.info import describe

    print(describe(options.weights))  # noqa: T201
    return ExitCode.OK


def add_demo(commands: Any) -> None:
    """Declare the command `demo`."""
    p = commands.add_parser("demo", help="a phantom exam, one sequence dropped, made again, scored and pictured")
    p.add_argument("--output", type=path, default=Path("demo"), metavar="DIR", help="default: ./demo")
    p.add_argument("--drop", choices=MODALITIES, default="t2f", help="default: t2f")
    p.add_argument("--device", default="auto", help="as in synthesize")
    p.add_argument("--model", metavar="NAME", help="as in synthesize")
    p.add_argument("--seed", type=natural, default=0)
    p.set_defaults(command=_demo)


def _demo(options: argparse.Namespace) -> int:
    from app.cli.commands.demo import run_demo

    print(run_demo(options.output, options.drop, options.seed, options.device, options.model))  # noqa: T201
    return ExitCode.OK


def add_phantom(commands: Any) -> None:
    """Declare the command `phantom`."""
    p = commands.add_parser("phantom", help="write synthetic four-sequence exams with a lesion, to try things out on")
    p.add_argument("--output", type=path, required=True, metavar="DIR", help="gets <ID>/<ID>-<sequence>.nii.gz")
    p.add_argument("--count", type=positive, default=1, metavar="N", help="how many; default: 1")
    p.add_argument("--seed", type=natural, default=0, help="of the first; default: 0")
    p.set_defaults(command=_phantom)


def _phantom(options: argparse.Namespace) -> int:
    from app.data.phantom import make_phantom, write_phantom

    for seed in range(options.seed, options.seed + options.count):
        write_phantom(make_phantom(PHANTOM_SHAPE, seed), options.output, f"phantom-{seed}")
    log.info("Written to %s: %d phantom%s.", options.output, options.count, "" if options.count == 1 else "s")
    return ExitCode.OK
