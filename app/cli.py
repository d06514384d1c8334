"""The command line. Heavy packages are imported by the command that needs them, so that `check` answers at once."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app import __version__
from app.config import BACKENDS, ON_ERROR, PRECISIONS, WEIGHTS_DIR, RunConfig
from app.constants import VIEWS
from app.errors import ExitCode, TetradError, UsageError

log = logging.getLogger("app")

_DESCRIPTION = (
    "Completes brain tumour MRI exams: finds the sequence (T1n, T1c, T2w, T2-FLAIR) that a subject lacks and makes it "
    "from the others. Without a command: synthesize --input /input --output /output."
)
_EXIT_CODES = (
    "exit codes: 0 every subject done; 1 some subject failed; 2 usage; 3 nothing to do; "
    "4 weights missing or damaged; 5 the device asked for is not there; 143 ended by SIGTERM"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = build_parser()
    # `docker run IMAGE --device cpu` means synthesize, as does `docker run IMAGE`.
    if not given or (given[0].startswith("-") and given[0] not in {"-h", "--help", "--version"}):
        given.insert(0, "synthesize")
    options = parser.parse_args(given)
    for stream in (sys.stdout, sys.stderr):
        # A name that the terminal cannot show must not end the run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.INFO, format="%(message)s", stream=sys.stderr, force=True
    )
    logging.getLogger().handlers[0].setFormatter(_Formatter())
    for noisy in ("matplotlib", "PIL", "torch", "onnxscript", "onnx_ir"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return int(options.command(options))
    except TetradError as error:
        log.error("%s", error)
        return error.exit_code
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        log.error("%s cannot be used (%s); choose another path.", error.filename, error.strerror)
        return ExitCode.USAGE
    except BrokenPipeError:
        # The reader of a pipe (`| head`) has gone; that is no failure worth a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        return prefix + super().format(record)


def build_parser() -> argparse.ArgumentParser:
    """All commands and options."""
    parser = argparse.ArgumentParser(prog="python -m app", description=_DESCRIPTION, epilog=_EXIT_CODES)
    parser.add_argument("--version", action="version", version=f"tetrad {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_synthesize(commands)
    _add_infer(commands)
    _add_check(commands)
    _add_info(commands)
    _add_demo(commands)
    _add_evaluate(commands)
    _add_dropout(commands)
    _add_baselines(commands)
    _add_export(commands)
    _add_import(commands)
    _add_fit(commands)
    _add_train(commands)
    for command in commands.choices.values():
        command.add_argument("--verbose", action="store_true", help="say more, tracebacks included")
    return parser


# ---------------------------------------------------------------- synthesize, infer


def _add_synthesize(commands: Any) -> None:
    p = commands.add_parser("synthesize", help="make the missing sequences of a folder of subjects", epilog=_EXIT_CODES)
    p.add_argument("--input", type=_path, default=Path("/input"), metavar="DIR", help="default: /input")
    p.add_argument("--output", type=_path, default=Path("/output"), metavar="DIR", help="default: /output")
    _add_run_options(p)
    p.add_argument("--weights", type=_path, default=WEIGHTS_DIR, metavar="DIR", help="folder with manifest.json")
    p.set_defaults(command=_synthesize)


def _add_infer(commands: Any) -> None:
    p = commands.add_parser("infer", help="the same, for the callers of 2023 and 2024", epilog=_EXIT_CODES)
    p.add_argument("--data_path", "--data-path", type=_path, required=True, metavar="DIR", dest="input")
    p.add_argument("--output_path", "--output-path", type=_path, required=True, metavar="DIR", dest="output")
    p.add_argument("--weights", type=_path, default=WEIGHTS_DIR, metavar="DIR", help="used if it has a manifest.json")
    p.add_argument("--parameters_file", "--parameters-file", type=_path, help="accepted and not used")
    _add_run_options(p)
    p.set_defaults(command=_infer)


def _add_run_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--model", metavar="NAME", help="a model of `info`; default: the manifest's default")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N; default: auto (a GPU if there is one)")
    p.add_argument("--backend", choices=BACKENDS, default="auto", help="default: auto (torch if it has the weights)")
    p.add_argument("--precision", choices=PRECISIONS, default="auto", help="default: auto (bf16 where it is native)")
    p.add_argument("--batch-size", type=_positive, metavar="N", help="slices per network call; default: the device's")
    p.add_argument(
        "--on-error",
        choices=ON_ERROR,
        help="a subject that cannot be done normally is made by the voxel-wise regression from what can be read "
        "(fallback, the default), left out (skip), or ends the run (stop)",
    )
    p.add_argument("--profile", choices=["challenge", "hospital"], default="challenge",
                   help="hospital: --on-error skip and a report folder beside the output")  # fmt: skip
    p.add_argument("--complete-all", action="store_true", help="make all that a subject lacks, one file each")
    p.add_argument("--resume", action="store_true", help="keep good outputs that are there (the default)")
    p.add_argument("--overwrite", action="store_true", help="make them again")
    p.add_argument("--part-id", type=_natural, metavar="I", help="which part, from 0; default: from the scheduler")
    p.add_argument("--num-parts", type=_positive, metavar="N", help="of how many; 1 ignores the scheduler")
    p.add_argument(
        "--report-dir", type=_path, metavar="DIR", help="where the run record (JSON) goes; not in the output"
    )


def _synthesize(options: argparse.Namespace) -> int:
    from app.batch import exit_code_of, run

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
        weights_dir=options.weights,
        model=options.model,
        device=options.device,
        backend=options.backend,
        precision=options.precision,
        batch_size=options.batch_size,
        on_error=options.on_error or ("skip" if hospital else "fallback"),
        complete_all=options.complete_all,
        overwrite=options.overwrite,
        part_id=part_id,
        num_parts=num_parts,
    )
    return exit_code_of(run(config))


def _infer(options: argparse.Namespace) -> int:
    if not (options.weights / "manifest.json").is_file():
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


# ---------------------------------------------------------------- check


def _add_check(commands: Any) -> None:
    p = commands.add_parser("check", help="say what synthesize would do, from the headers alone", epilog=_EXIT_CODES)
    p.add_argument("--input", type=_path, default=Path("/input"), metavar="DIR", help="default: /input")
    p.add_argument("--on-error", choices=ON_ERROR, default="fallback")
    p.add_argument("--complete-all", action="store_true")
    p.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    from app.cases import plan, scan
    from app.errors import CaseError

    found = scan(options.input)
    rows, remarks, failed, work = [("subject", "present", "to make", "how")], list(found.notes), False, False
    for case in found.cases:
        present = ", ".join(case.usable) or "none"
        try:
            todo = plan(case, options.on_error, options.complete_all)
        except CaseError as error:
            failed = True
            rows.append((case.subject, present, "-", "cannot be done"))
            remarks.append(str(error))
            continue
        work = work or bool(todo.targets)
        remarks.extend(todo.warnings)
        how = "fallback" if todo.fallback else "model" if todo.targets else "complete"
        rows.append((case.subject, present, ", ".join(todo.targets) or "-", how))
    if len(rows) > 1:
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())  # noqa: T201
    for remark in remarks:
        log.warning("%s", remark)
    if failed:
        return ExitCode.SUBJECT_FAILED
    if not work:
        if not found.cases:
            log.error("%s holds no subject; expected files such as <ID>/<ID>-t1n.nii.gz.", options.input)
        else:
            log.error("Nothing to do: no subject of %s lacks a sequence.", options.input)
        return ExitCode.NOTHING_TO_DO
    return ExitCode.OK


# ---------------------------------------------------------------- info, demo


def _add_info(commands: Any) -> None:
    p = commands.add_parser("info", help="models, devices and versions")
    p.add_argument("--weights", type=_path, default=WEIGHTS_DIR, metavar="DIR", help="folder with manifest.json")
    p.set_defaults(command=_info)


def _info(options: argparse.Namespace) -> int:
    from app.info import describe

    print(describe(options.weights))  # noqa: T201
    return ExitCode.OK


def _add_demo(commands: Any) -> None:
    p = commands.add_parser("demo", help="a phantom exam, one sequence dropped, made again, scored and pictured")
    p.add_argument("--output", type=_path, default=Path("demo"), metavar="DIR", help="default: ./demo")
    p.add_argument("--drop", choices=["t1c", "t1n", "t2f", "t2w"], default="t2f", help="default: t2f")
    p.add_argument("--device", default="auto", help="as in synthesize")
    p.add_argument("--model", metavar="NAME", help="as in synthesize")
    p.add_argument("--seed", type=_natural, default=0)
    p.set_defaults(command=_demo)


def _demo(options: argparse.Namespace) -> int:
    from app.demo import run_demo

    print(run_demo(options.output, options.drop, options.seed, options.device, options.model))  # noqa: T201
    return ExitCode.OK


# ---------------------------------------------------------------- evaluate, dropout, baselines


def _add_evaluate(commands: Any) -> None:
    p = commands.add_parser("evaluate", help="score synthesised sequences against the real ones")
    p.add_argument("--prediction", type=_path, required=True, metavar="DIR", help="holds <subject>-<sequence>.nii.gz")
    p.add_argument("--reference", type=_path, required=True, metavar="DIR", help="complete subjects")
    p.add_argument("--segmentations", type=_path, metavar="DIR", help="<subject>-seg.nii.gz; default: the reference")
    p.add_argument("--predicted-segmentations", type=_path, metavar="DIR", help="label maps to score as well")
    p.add_argument("--against", type=_path, metavar="DIR", help="another prediction folder to compare with, paired")
    p.add_argument(
        "--border", choices=["keep", "drop"], default="keep", help="as torchmetrics >= 1.4.2 (keep) or older"
    )
    p.add_argument("--out", type=_path, metavar="DIR", help="gets scores.csv, summary.json, report.html, pictures")
    p.add_argument("--jobs", type=_positive, default=os.cpu_count() or 1, metavar="N", help="processes; default: cores")
    p.set_defaults(command=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from app import evaluate as ev
    from app.report.run import write_evaluation_report

    pairs, problems = ev.find_pairs(options.prediction, options.reference, options.segmentations)
    if options.against is not None:
        others, more = ev.find_pairs(options.against, options.reference, options.segmentations)
        problems += more
    if options.out is not None:
        # A folder that cannot be made must be known before minutes of scoring.
        options.out.mkdir(parents=True, exist_ok=True)
    scores = ev.score_all(pairs, options.border, options.jobs)
    problems += [p for s in scores for p in s.problems]
    summary = ev.summarise(scores)
    print(ev.table(summary))  # noqa: T201
    results: dict[str, Any] = {"scores": summary}
    if options.against is not None:
        second = ev.score_all(others, options.border, options.jobs)
        problems += [p for s in second for p in s.problems]
        results["comparison"] = ev.compare(scores, second)
        print("\n" + ev.comparison_table(results["comparison"], str(options.against)))  # noqa: T201
    if options.predicted_segmentations is not None:
        segmented = ev.score_segmentations(options.predicted_segmentations, options.segmentations or options.reference)
        problems += [p for s in segmented for p in s.problems]
        results["segmentations"] = ev.summarise(segmented)
        scores = [*scores, *segmented]
        print("\n" + ev.segmentation_table(results["segmentations"]["all"]))  # noqa: T201
    problems = list(dict.fromkeys(problems))
    if options.out is not None:
        ev.write_results(options.out, scores, results, problems)
        facts = {"prediction": str(options.prediction), "reference": str(options.reference), "border": options.border}
        images = [s for s in scores if s.modality != "seg"]
        write_evaluation_report(images, summary, problems, ev.COLUMNS, pairs, facts, options.out / "report.html")
        log.info("Scores, summary and report: %s", options.out)
    for problem in problems:
        log.warning("%s", problem)
    return ExitCode.SUBJECT_FAILED if problems else ExitCode.OK


def _add_dropout(commands: Any) -> None:
    p = commands.add_parser("dropout", help="copy complete subjects with one sequence left out of each")
    p.add_argument("--input", type=_path, required=True, metavar="DIR", help="complete subjects")
    p.add_argument("--output", type=_path, required=True, metavar="DIR", help="a new folder")
    which = p.add_mutually_exclusive_group()
    which.add_argument("--seed", type=_natural, default=123456, help="default: 123456, the organisers'")
    which.add_argument("--each", action="store_true", help="leave out each of the four in turn")
    p.set_defaults(command=_dropout)


def _dropout(options: argparse.Namespace) -> int:
    from app.dropout import make_dropout

    for subject, dropped in make_dropout(options.input, options.output, options.seed, options.each):
        log.info("%s: without %s", subject, dropped)
    return ExitCode.OK


def _add_baselines(commands: Any) -> None:
    p = commands.add_parser(
        "baselines", help="score what any network must beat: nothing, the best copy, the regression"
    )
    p.add_argument("--data", type=_path, required=True, metavar="DIR", help="complete subjects with segmentations")
    p.add_argument("--weights", type=_path, default=WEIGHTS_DIR, metavar="DIR", help="folder with manifest.json")
    p.add_argument("--jobs", type=_positive, default=os.cpu_count() or 1, metavar="N", help="processes; default: cores")
    p.set_defaults(command=_baselines)


def _baselines(options: argparse.Namespace) -> int:
    from app.baselines import score_baselines
    from app.evaluate import summarise, table

    results = score_baselines(options.data, options.jobs, options.weights)
    print(table({name: summarise(scores)["all"] for name, scores in results.items()}, "baseline"))  # noqa: T201
    return ExitCode.OK


# ---------------------------------------------------------------- weights


def _add_export(commands: Any) -> None:
    p = commands.add_parser("export", help="write a generator as ONNX beside its weights, for --backend onnx")
    p.add_argument("--weights", type=_path, default=WEIGHTS_DIR, metavar="DIR", help="folder with manifest.json")
    p.add_argument("--model", metavar="NAME", help="default: the manifest's default")
    p.set_defaults(command=_export)


def _export(options: argparse.Namespace) -> int:
    from app.export import export_onnx
    from app.weights import read_manifest

    entry = export_onnx(read_manifest(options.weights).entry(options.model))
    log.info("%s has %s now.", entry.name, entry.folder / entry.files["onnx"]["path"])
    return ExitCode.OK


def _add_import(commands: Any) -> None:
    p = commands.add_parser("import-weights", help="bring a public checkpoint into Tetrad's format")
    p.add_argument("file", type=_path, metavar="FILE", help="the released .safetensors file")
    p.add_argument("--kind", choices=["brasyn25"], required=True)
    p.add_argument("--weights", type=_path, required=True, metavar="DIR", help="folder that gets it; made if need be")
    p.add_argument("--name", default="brasyn25", help="what --model will call it; default: brasyn25")
    p.add_argument("--views", type=_views, default=("sagittal",), metavar="VIEW,...", help="default: sagittal")
    p.set_defaults(command=_import)


def _import(options: argparse.Namespace) -> int:
    from app.weights import import_checkpoint

    entry = import_checkpoint(options.file, options.kind, options.weights, options.name, options.views)
    log.info("Imported as model %s of %s; use: --weights %s", entry.name, entry.folder, entry.folder)
    return ExitCode.OK


def _add_fit(commands: Any) -> None:
    p = commands.add_parser("fit-regression", help="fit the voxel-wise regression and the intensity predictor")
    p.add_argument("--data", type=_path, required=True, metavar="DIR", help="folder of complete subjects")
    p.add_argument("--weights", type=_path, default=WEIGHTS_DIR, metavar="DIR", help="folder that gets them")
    p.set_defaults(command=_fit)


def _fit(options: argparse.Namespace) -> int:
    from app.training.regression import fit_and_write

    entry = fit_and_write(options.data, options.weights)
    log.info("Fitted on %d subjects: model %s of %s.", entry.details["training"]["subjects"], entry.name, entry.folder)
    return ExitCode.OK


def _add_train(commands: Any) -> None:
    p = commands.add_parser("train", help="train a generator on a folder of complete subjects")
    p.add_argument("--data", type=_path, required=True, metavar="DIR", help="folder of complete subjects")
    p.add_argument("--weights", type=_path, required=True, metavar="DIR", help="folder that gets the model")
    p.add_argument("--name", default="trained", help="what --model will call it; default: trained")
    p.add_argument("--cache", type=_path, required=True, metavar="DIR", help="prepared arrays, 40 MB a subject; reused")
    p.add_argument("--preset", choices=["compact", "half", "full"], default="compact")
    p.add_argument("--budget-minutes", type=float, default=30.0, metavar="M", help="default: 30")
    p.add_argument("--steps", type=_positive, metavar="N", help="end after so many batches, if earlier")
    p.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="slices per batch; default: 8")
    p.add_argument("--learning-rate", type=float, default=1e-3, metavar="R", help="peak; default: 0.001")
    p.add_argument("--device", default="cpu", help="cpu or cuda[:N]; default: cpu")
    p.add_argument("--seed", type=_natural, default=0)
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


# ---------------------------------------------------------------- types of arguments


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the path is empty (an unset variable?)")
    return Path(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return int(text)


def _views(text: str) -> tuple[Any, ...]:
    views = tuple(text.split(","))
    if unknown := [v for v in views if v not in VIEWS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no view; use {', '.join(VIEWS)}")
    return views
