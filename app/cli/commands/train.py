"""The command `train`."""

from __future__ import annotations

import argparse
import logging
import shlex
from typing import Any

from app.cli.argument_types import path
from app.core.config import WEIGHTS_DIR
from app.core.errors import ExitCode

log = logging.getLogger(__name__)


def add_train(commands: Any) -> None:
    """Declare the command `train`."""
    p = commands.add_parser(
        "train",
        help="train a generator, a refiner, an enhancer or a segmenter by a recipe",
        description="Trains by a recipe. `torchrun --nproc-per-node N -m -- app train ...` uses N GPUs.",
    )
    p.late_epilog = _list_recipes
    p.add_argument("recipe", metavar="RECIPE", help="a .toml file, or the name of a recipe below")
    p.add_argument("--data", type=path, required=True, metavar="DIR", help="folder of complete subjects")
    p.add_argument("--run", type=path, required=True, metavar="DIR", help="gets checkpoints, logs and pictures")
    p.add_argument("--cache", type=path, metavar="DIR", help="prepared arrays, 40 MB a subject; default: RUN/cache")
    p.add_argument("--validation", type=path, metavar="DIR", help="validate on these instead of held-out subjects")
    p.add_argument(
        "--unpaired",
        type=path,
        metavar="DIR",
        help="exams of other patients that lack the sequence which --data teaches: for ds3net, and for generators of "
        "one sequence or with data.withheld",
    )
    p.add_argument(
        "--simulated",
        type=path,
        metavar="DIR",
        help="exams of `simulate`, mixed in by the recipe's data.simulated_share",
    )
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe; repeatable")
    p.add_argument("--budget-minutes", type=float, metavar="M", help="as --set schedule.budget_minutes=M")
    p.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    p.add_argument(
        "--weights",
        type=path,
        default=WEIGHTS_DIR,
        metavar="DIR",
        help="where the models named below are",
    )
    p.add_argument("--segmenter", metavar="NAME", help="teaches the Tversky and Dice losses; default: the task's own")
    p.add_argument(
        "--start",
        metavar="NAME",
        help="begin with this model's weights (one of the recipe's kind)",
    )
    p.add_argument(
        "--stage-one",
        metavar="NAME",
        help="the generator that a refiner refines; default: the manifest's default. Its volumes of every subject "
        "are kept in the cache",
    )
    p.add_argument("--device", default="auto", help="auto, cpu or cuda[:N]")
    p.set_defaults(command=_train)


def _list_recipes() -> str:
    from app.training.recipe_files import built_in

    return "recipes: " + "; ".join(f"{name}: {note}" for name, note in built_in().items())


def _train(options: argparse.Namespace) -> int:
    from app.inference.device import Machine, choose_device
    from app.registry.manifest import read_manifest
    from app.training.config import load_recipe
    from app.training.tasks.base import task_of
    from app.training.trainer import TrainingPaths, train

    changes = list(options.set)
    if options.budget_minutes is not None:
        changes.append(f"schedule.budget_minutes={options.budget_minutes}")
    recipe = load_recipe(options.recipe, changes)
    task = task_of(recipe)
    outcome = train(
        recipe,
        TrainingPaths(
            options.data, options.run, options.cache, options.validation, options.unpaired, options.simulated
        ),
        device=choose_device(options.device, Machine.probe())[0],
        resume=options.resume,
        segmenter=read_manifest(options.weights).entry(options.segmenter or task.teacher_name)
        if task.teaching_loss(recipe)
        else None,
        start=read_manifest(options.weights).entry(options.start) if options.start else None,
        stage_one=read_manifest(options.weights).entry(options.stage_one) if task.needs_stage_one else None,
    )
    if outcome.signal_number is not None:
        log.warning("Stopped after step %d; the same command with --resume goes on.", outcome.state.step)
        return 128 + outcome.signal_number
    places = {"data": options.data, "cache": options.cache}
    given = " ".join(f"--{option} {shlex.quote(str(path))}" for option, path in places.items() if path is not None)
    command = (
        f"python -m app export {shlex.quote(str(options.run))} {given} --model NAME{task.export_hint} --score-on UNSEEN"
    )
    log.info("Trained: %d steps, %.1f minutes; `%s` makes a model of it.",
             outcome.state.step, outcome.state.minutes, command)  # fmt: skip
    return ExitCode.OK
