"""The commands that complete exams: synthesize, infer."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from app.cli.argument_types import EXIT_CODES, path
from app.cli.options import add_options, given
from app.core.config import (
    RESUMES,
    WEIGHTS_DIR,
    ClinicConfig,
    ClusterOptions,
    ModelOptions,
    NamingOptions,
    RunConfig,
    RuntimeOptions,
)
from app.core.container import is_lost_with_container
from app.core.errors import UsageError

log = logging.getLogger(__name__)

_ARRAY = "SLURM_ARRAY_TASK_"
_TASK = f"{_ARRAY}ID"
#: Most digits of a number in the environment.
_DIGITS = 18
#: Fields of `ClinicConfig` that are options here.
_OF_SCANS = ("dicom", "send", "stamp", "series_names", "allow_other_study")
_ADVICE = (
    f"give --part-id and --num-parts (--part-id ${_TASK} --num-parts N for tasks of an array from 0 to N-1), or "
    "--num-parts 1 to do all in each"
)
_RESUME = (
    "keep outputs that are there and good: those made from the same inputs (same, the default), or any, with a warning "
    "where the inputs are others by now"
)


def add_synthesize(commands: Any) -> None:
    """Declare the command `synthesize`."""
    p = commands.add_parser("synthesize", help="make the missing sequences of a folder of subjects", epilog=EXIT_CODES)
    add_options(p, RunConfig, "input_dir", "output_dir")
    _add_run_options(p)
    p.set_defaults(command=_synthesize)


def add_infer(commands: Any) -> None:
    """Declare the command `infer`."""
    p = commands.add_parser("infer", help="the same, for the callers of 2023 and 2024", epilog=EXIT_CODES)
    p.add_argument("--data_path", "--data-path", type=path, required=True, metavar="DIR", dest="input_dir")
    p.add_argument("--output_path", "--output-path", type=path, required=True, metavar="DIR", dest="output_dir")
    p.add_argument("--parameters_file", "--parameters-file", type=path, help="accepted and not used")
    _add_run_options(p)
    p.set_defaults(command=_infer)


def _add_run_options(p: argparse.ArgumentParser) -> None:
    add_options(p, ModelOptions)
    add_options(p, RuntimeOptions)
    add_options(p, NamingOptions)
    add_options(p, ClusterOptions)
    directories = {"input_dir", "output_dir"}
    add_options(p, RunConfig, *(f.name for f in fields(RunConfig) if f.name not in directories))
    p.add_argument("--profile", choices=["challenge", "hospital"], default="challenge",
                   help="hospital: --on-error skip and a report folder beside the output")  # fmt: skip
    add_resume(p)
    p.add_argument("--clinic", action="store_true",
                   help="the input holds a folder per exam as scanned, DICOM or NIfTI; see `clinic`")  # fmt: skip
    add_options(p, ClinicConfig, *_OF_SCANS)
    p.add_argument("--cuda-graphs", action="store_true", help=argparse.SUPPRESS)


def add_resume(p: argparse.ArgumentParser) -> None:
    """Declare `--resume`."""
    p.add_argument("--resume", nargs="?", choices=RESUMES, const="same", help=_RESUME)


def resume_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the field `resume` of a run, where the command line names it.

    Raises:
        UsageError: everything shall be made again as well.
    """
    if options.resume is None:
        return {}
    if getattr(options, "overwrite", False):
        raise UsageError("--resume and --overwrite contradict each other; give one.")
    return {"resume": options.resume}


def _synthesize(options: argparse.Namespace) -> int:
    from app.batch.outcomes import exit_code_of
    from app.batch.run import run

    return exit_code_of(run(_config_of(options)))


def _infer(options: argparse.Namespace) -> int:
    weights_dir: Path = getattr(options, "weights_dir", WEIGHTS_DIR)
    if weights_dir != WEIGHTS_DIR and not (weights_dir / "manifest.json").is_file():
        log.warning("%s has no manifest.json; the built-in weights are used.", weights_dir)
        options.weights_dir = WEIGHTS_DIR
    return _synthesize(options)


def _config_of(options: argparse.Namespace) -> RunConfig:
    """Build the configuration of a run from the command line.

    Raises:
        UsageError: options that contradict each other.
    """
    if options.cuda_graphs:
        log.warning("--cuda-graphs was removed and changes nothing; leave it out.")
    values = given(options, RunConfig) | resume_of(options)
    if options.profile == "hospital":
        values.setdefault("on_error", "skip")
        if "report_dir" not in values:
            values["report_dir"] = _report_beside(values.get("output_dir", RunConfig.output_dir))
    part_id, num_parts = choose_part(values.get("part_id"), values.get("num_parts"), os.environ)
    values |= {"part_id": part_id, "num_parts": num_parts}
    model = ModelOptions(**given(options, ModelOptions), with_error="confidence_dir" in values)
    runtime, naming = RuntimeOptions(**given(options, RuntimeOptions)), NamingOptions(**given(options, NamingOptions))
    cluster = ClusterOptions(**given(options, ClusterOptions))
    parts: dict[str, Any] = {"runtime": runtime, "model": model, "naming": naming, "cluster": cluster}
    if options.clinic:
        # Alignments take turns, and an exam that waits for the network is large.
        values.setdefault("jobs", 1)
        return ClinicConfig(**values, **_clinic_values(options), **parts)
    if any(hasattr(options, name) for name in _OF_SCANS):
        flags = ", ".join("--" + name.replace("_", "-") for name in _OF_SCANS)
        raise UsageError(f"{flags} are for exams as scanned; give --clinic as well.")
    return RunConfig(**values, **parts)


def _clinic_values(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is said of exams as scanned alone.

    Raises:
        UsageError: options that they have not, or a node that cannot be.
    """
    if hasattr(options, "confidence_dir"):
        raise UsageError("exams as scanned have no maps of confidence; leave out --confidence-dir or --clinic.")
    values = {name: getattr(options, name) for name in _OF_SCANS if hasattr(options, name)}
    if "stamp" in values and not {"dicom", "send"} & set(values):
        raise UsageError("--stamp marks a derived series; give --dicom or --send as well.")
    if "send" in values:
        from app.dicom.destination import Destination, require_network

        Destination.parse(values["send"])
        require_network()
    return values


def _report_beside(output_dir: Path) -> Path:
    """Place the report folder beside the output.

    Raises:
        UsageError: there is no such place, or a container would lose it.
    """
    output = output_dir.resolve()
    if not output.name:
        raise UsageError(f"the output {output_dir} has no folder beside it for the report; give --report-dir.")
    report = output.with_name(output.name + "-report")
    if is_lost_with_container(report) and not is_lost_with_container(output):
        raise UsageError(
            f"the report folder {report} would lie in the container itself and be lost with it; mount a folder there "
            f"(-v DIR:{report}), or name another with --report-dir."
        )
    return report


def choose_part(part_id: int | None, num_parts: int | None, environment: Mapping[str, str]) -> tuple[int, int]:
    """Choose this process's share of the subjects: from the options, else Slurm or Kubernetes.

    Raises:
        UsageError: only one of the two numbers is known, the part does not exist, or an array's parts cannot be
            counted.
    """
    if num_parts == 1:
        part_id = part_id or 0
    if part_id is None and num_parts is None and _TASK in environment:
        part_id, num_parts = _slurm_part(environment)
        log.info("Part %d of %d, from %s; --num-parts 1 does all.", part_id, num_parts, _TASK)
    elif part_id is None and num_parts is not None and "JOB_COMPLETION_INDEX" in environment:
        part_id = _number(environment, "JOB_COMPLETION_INDEX")
    if part_id is None and num_parts is None:
        return 0, 1
    if part_id is None or num_parts is None:
        raise UsageError("--part-id and --num-parts belong together; give both.")
    if part_id >= num_parts:
        raise UsageError(f"part {part_id} of {num_parts} does not exist; parts count from 0.")
    return part_id, num_parts


def _slurm_part(environment: Mapping[str, str]) -> tuple[int, int]:
    """Count the parts of a Slurm array by the place of each task in it, where that is certain.

    A list of tasks such as `--array=3,7`, often those of an earlier array that failed, has no place for each: with the
    lowest and highest number and the count alone, some subjects would be done by nobody.

    Raises:
        UsageError: the places are not certain.
    """
    task, count = _number(environment, _TASK), _number(environment, f"{_ARRAY}COUNT")
    if count == 1:
        return 0, 1
    first, last = (_number(environment, f"{_ARRAY}{end}") for end in ("MIN", "MAX"))
    step = _number(environment, f"{_ARRAY}STEP", 1)
    regular = step > 0 and first <= task <= last and (last - first) // step + 1 == count
    if not regular or (task - first) % step:
        raise UsageError(
            f"this Slurm array is a list: {count} tasks from {first} to {last} by steps of {step} do not tell which "
            f"part task {task} is; {_ADVICE}."
        )
    return (task - first) // step, count


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal() or len(text) > _DIGITS:
        shown = "not set" if text is None else f"{text[:_DIGITS]!r}, not a whole number"
        raise UsageError(f"the environment's {name} is {shown}; {_ADVICE}.")
    return int(text)
