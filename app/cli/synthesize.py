"""The commands that complete exams: synthesize, infer, check."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

from app.cli.argument_types import EXIT_CODES, natural, path, positive
from app.core.config import BACKENDS, FUSIONS, ON_ERROR, PRECISIONS, WEIGHTS_DIR, RunConfig
from app.core.errors import UsageError

log = logging.getLogger(__name__)


def add_synthesize(commands: Any) -> None:
    """Declares the command `synthesize`."""
    p = commands.add_parser("synthesize", help="make the missing sequences of a folder of subjects", epilog=EXIT_CODES)
    p.add_argument("--input", type=path, default=Path("/input"), metavar="DIR", help="default: /input")
    p.add_argument("--output", type=path, default=Path("/output"), metavar="DIR", help="default: /output")
    _add_run_options(p)
    p.add_argument("--weights", type=path, default=WEIGHTS_DIR, metavar="DIR", help="folder with manifest.json")
    p.set_defaults(command=_synthesize)


def add_infer(commands: Any) -> None:
    """Declares the command `infer`."""
    p = commands.add_parser("infer", help="the same, for the callers of 2023 and 2024", epilog=EXIT_CODES)
    p.add_argument("--data_path", "--data-path", type=path, required=True, metavar="DIR", dest="input")
    p.add_argument("--output_path", "--output-path", type=path, required=True, metavar="DIR", dest="output")
    p.add_argument("--weights", type=path, default=WEIGHTS_DIR, metavar="DIR", help="used if it has a manifest.json")
    p.add_argument("--parameters_file", "--parameters-file", type=path, help="accepted and not used")
    _add_run_options(p)
    p.set_defaults(command=_infer)


def _add_run_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--model", metavar="NAME", help="a model of `info`; default: the manifest's default")
    p.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda, cuda:N, several with commas, or all GPUs; default: auto (a GPU if there is one)",
    )
    p.add_argument("--backend", choices=BACKENDS, default="auto", help="default: auto (torch if it has the weights)")
    p.add_argument("--precision", choices=PRECISIONS, default="auto", help="default: auto (bf16 where it is native)")
    p.add_argument("--batch-size", type=positive, metavar="N", help="slices per network call; default: the device's")
    p.add_argument(
        "--cuda-graphs",
        action="store_true",
        help="on a GPU: record what the network launches once per shape, and replay it",
    )
    p.add_argument(
        "--refine",
        action=argparse.BooleanOptionalAction,
        help="correct what is made with the model's 3D refiner; default: as the model's manifest entry says",
    )
    p.add_argument(
        "--specialists",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let other models make the sequences that the model's manifest entry leaves to them; default: yes",
    )
    p.add_argument(
        "--fusion",
        choices=FUSIONS,
        help="how the views become one volume: their mean, their median, or the mean weighted by how sure each is "
        "(inverse squares of the errors that the model expects); default: the model's own way, else mean",
    )
    p.add_argument(
        "--flip-average",
        action=argparse.BooleanOptionalAction,
        help="also run the exam mirrored left to right and average both: axial and coronal slices are run twice, two "
        "thirds more of them in all; default: the model's own way, else not",
    )
    p.add_argument(
        "--confidence-dir",
        type=path,
        metavar="DIR",
        help="write <ID>-<sequence>-confidence.nii.gz there (not in the output), on the output's grid: 1 / (1 + the "
        "error that the model expects, in deviations of the real sequence), so near 1 where it is sure, 0.5 at an "
        "expected error of one deviation, 0 in the background; needs a model with a confidence head",
    )
    p.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="threads that decode the next subjects while the network runs; default: 1 per 16 cores, "
        "beside a GPU half the cores, 2 to 8 (1 with --on-error stop)",
    )
    p.add_argument(
        "--on-error",
        choices=ON_ERROR,
        help="a subject that cannot be done normally is made by the voxel-wise regression from what can be read "
        "(fallback, the default), left out (skip), or ends the run (stop)",
    )
    p.add_argument(
        "--profile-run", type=path, metavar="FILE", help="write a Chrome trace: seconds per stage and subject"
    )
    p.add_argument("--profile", choices=["challenge", "hospital"], default="challenge",
                   help="hospital: --on-error skip and a report folder beside the output")  # fmt: skip
    p.add_argument("--complete-all", action="store_true", help="make all that a subject lacks, one file each")
    p.add_argument("--resume", action="store_true", help="keep good outputs that are there (the default)")
    p.add_argument("--overwrite", action="store_true", help="make them again")
    p.add_argument("--part-id", type=natural, metavar="I", help="which part, from 0; default: from the scheduler")
    p.add_argument("--num-parts", type=positive, metavar="N", help="of how many; 1 ignores the scheduler")
    p.add_argument("--report-dir", type=path, metavar="DIR", help="where the run record (JSON) goes; not in the output")


def _synthesize(options: argparse.Namespace) -> int:
    from app.batch.outcomes import exit_code_of
    from app.batch.run import run

    if options.resume and options.overwrite:
        raise UsageError("--resume and --overwrite contradict each other; give one.")
    hospital = options.profile == "hospital"
    part_id, num_parts = choose_part(options.part_id, options.num_parts, os.environ)
    report_dir = options.report_dir
    if report_dir is None and hospital:
        if not options.output.resolve().name:
            raise UsageError(f"the output {options.output} has no folder beside it for the report; give --report-dir.")
        report_dir = options.output.resolve().with_name(options.output.resolve().name + "-report")
    config = RunConfig(
        input_dir=options.input,
        output_dir=options.output,
        report_dir=report_dir,
        profile_file=options.profile_run,
        weights_dir=options.weights,
        model=options.model,
        device=options.device,
        backend=options.backend,
        precision=options.precision,
        batch_size=options.batch_size,
        cuda_graphs=options.cuda_graphs,
        refine=options.refine,
        specialists=options.specialists,
        jobs=options.jobs,
        fusion=options.fusion,
        flip_average=options.flip_average,
        confidence_dir=options.confidence_dir,
        on_error=options.on_error or ("skip" if hospital else "fallback"),
        complete_all=options.complete_all,
        overwrite=options.overwrite,
        part_id=part_id,
        num_parts=num_parts,
    )
    return exit_code_of(run(config))


def _infer(options: argparse.Namespace) -> int:
    if options.weights != WEIGHTS_DIR and not (options.weights / "manifest.json").is_file():
        log.warning("%s has no manifest.json; the built-in weights are used.", options.weights)
        options.weights = WEIGHTS_DIR
    return _synthesize(options)


def choose_part(part_id: int | None, num_parts: int | None, environment: Any) -> tuple[int, int]:
    """Which share of the subjects this process does: from the options, else from Slurm or Kubernetes.

    Raises:
        UsageError: only one of the two numbers is known, or the part does not exist.
    """
    if num_parts == 1:
        part_id = part_id or 0
    if part_id is None and num_parts is None and "SLURM_ARRAY_TASK_ID" in environment:
        first = _number(environment, "SLURM_ARRAY_TASK_MIN", 0)
        step = _number(environment, "SLURM_ARRAY_TASK_STEP", 1)
        part_id = (_number(environment, "SLURM_ARRAY_TASK_ID") - first) // step
        num_parts = _number(environment, "SLURM_ARRAY_TASK_COUNT", 1)
        log.info("Part %d of %d, from SLURM_ARRAY_TASK_ID; --num-parts 1 does all.", part_id, num_parts)
    elif part_id is None and num_parts is not None and "JOB_COMPLETION_INDEX" in environment:
        part_id = _number(environment, "JOB_COMPLETION_INDEX")
    if part_id is None and num_parts is None:
        return 0, 1
    if part_id is None or num_parts is None:
        raise UsageError("--part-id and --num-parts belong together; give both.")
    if part_id >= num_parts:
        raise UsageError(f"part {part_id} of {num_parts} does not exist; parts count from 0.")
    return part_id, num_parts


def _number(environment: Any, name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        raise UsageError(f"the environment's {name} is {text!r}, not a whole number; give --part-id and --num-parts.")
    return int(text)
