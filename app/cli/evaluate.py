"""The commands that show and judge: info, demo, evaluate, dropout, baselines."""

from __future__ import annotations

import argparse
import logging
import os
from typing import TYPE_CHECKING, Any

from app.cli.argument_types import natural, path, positive
from app.core.atomic_io import save_bytes
from app.core.config import WEIGHTS_DIR
from app.core.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from app.evaluation.scoring import Pair, Scores
    from app.inference.segmentation import TumourSegmenter

log = logging.getLogger(__name__)


def add_evaluate(commands: Any) -> None:
    """Declares the command `evaluate`."""
    p = commands.add_parser("evaluate", help="score synthesised sequences against the real ones")
    p.add_argument("--prediction", type=path, required=True, metavar="DIR", help="holds <subject>-<sequence>.nii.gz")
    p.add_argument("--reference", type=path, required=True, metavar="DIR", help="complete subjects")
    p.add_argument("--segmentations", type=path, metavar="DIR", help="<subject>-seg.nii.gz; default: the reference")
    p.add_argument("--predicted-segmentations", type=path, metavar="DIR", help="label maps to score as well")
    p.add_argument(
        "--downstream",
        action="store_true",
        help="also segment each exam with the synthesised sequence in the real one's place: Dice, NSD, HD95",
    )
    p.add_argument("--judge", default="judge", metavar="NAME", help="the model that segments; default: judge")
    p.add_argument("--weights", type=path, default=WEIGHTS_DIR, metavar="DIR", help="folder with manifest.json")
    p.add_argument("--device", default="auto", help="of the judge: auto, cpu or cuda[:N]")
    p.add_argument(
        "--confidence",
        type=path,
        metavar="DIR",
        help="maps of `synthesize --confidence-dir`: expected against observed error in ten bins, in deviations of the "
        "real sequence, each volume first brought to the real one's brightness and contrast",
    )
    p.add_argument("--against", type=path, metavar="DIR", help="another prediction folder to compare with, paired")
    p.add_argument(
        "--border", choices=["keep", "drop"], default="keep", help="as torchmetrics >= 1.4.2 (keep) or older"
    )
    p.add_argument("--out", type=path, metavar="DIR", help="gets scores.csv, summary.json, report.html, pictures")
    p.add_argument("--jobs", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes; default: cores")
    p.set_defaults(command=_evaluate)


def _evaluate(options: argparse.Namespace) -> int:
    from app.evaluation import scoring, statistics
    from app.report.evaluation_page import write_evaluation_report

    # Before minutes of scoring: is there a judge, and the device?
    judge = _judge(options) if options.downstream else None
    pairs, problems = scoring.find_pairs(options.prediction, options.reference, options.segmentations)
    if options.against is not None:
        others, more = scoring.find_pairs(options.against, options.reference, options.segmentations)
        problems += more
    if options.out is not None:
        # A folder that cannot be made must be known before minutes of scoring.
        options.out.mkdir(parents=True, exist_ok=True)
    images = scoring.score_all(pairs, options.border, options.jobs)
    problems += [p for s in images for p in s.problems]
    summary, scores = statistics.summarise(images), list(images)
    print(statistics.table(summary))  # noqa: T201
    results: dict[str, Any] = {"scores": summary}
    if options.against is not None:
        second = scoring.score_all(others, options.border, options.jobs)
        problems += [p for s in second for p in s.problems]
        results["comparison"] = statistics.compare(images, second)
        print("\n" + statistics.comparison_table(results["comparison"], str(options.against)))  # noqa: T201
    downstream: list[list[list[str]]] = []
    if judge is not None:
        judged, downstream = _judge_downstream(judge, pairs, results, problems)
        scores += judged
    if options.predicted_segmentations is not None:
        segmented = scoring.score_segmentations(
            options.predicted_segmentations, options.segmentations or options.reference
        )
        problems += [p for s in segmented for p in s.problems]
        results["segmentations"] = statistics.summarise(segmented)
        scores += segmented
        print("\n" + statistics.segmentation_table(results["segmentations"]["all"]))  # noqa: T201
    calibration = None
    if options.confidence is not None:
        calibration = _judge_confidence(options, pairs, results, problems)
    problems = list(dict.fromkeys(problems))
    if options.out is not None:
        statistics.write_results(options.out, scores, results, problems)
        facts = {"prediction": str(options.prediction), "reference": str(options.reference), "border": options.border}
        page = options.out / "report.html"
        write_evaluation_report(
            images, summary, problems, statistics.COLUMNS, pairs, facts, page, calibration, downstream
        )
        log.info("Scores, summary and report: %s", options.out)
    for problem in problems:
        log.warning("%s", problem)
    return ExitCode.SUBJECT_FAILED if problems else ExitCode.OK


def _judge(options: argparse.Namespace) -> TumourSegmenter:
    from app.inference.segmentation import TumourSegmenter
    from app.registry.manifest import read_manifest

    return TumourSegmenter.open(read_manifest(options.weights).entry(options.judge), options.device)


def _judge_downstream(
    judge: TumourSegmenter, pairs: list[Pair], results: dict[str, Any], problems: list[str]
) -> tuple[list[Scores], list[list[list[str]]]]:
    """Prints what the judge finds with each synthesised sequence and adds it to the results; its tables."""
    from app.evaluation.downstream import downstream_rows, downstream_summary, score_downstream
    from app.evaluation.statistics import markdown

    judged = score_downstream(pairs, judge)
    problems += [p for s in judged for p in s.problems]
    results["downstream"] = downstream_summary(judged)
    tables = [downstream_rows(judged, own) for own in (False, True)]
    print("\n" + "\n\n".join(map(markdown, tables)))  # noqa: T201
    return judged, tables


def _judge_confidence(
    options: argparse.Namespace, pairs: list[Pair], results: dict[str, Any], problems: list[str]
) -> tuple[list[list[str]], bytes] | None:
    """Prints the calibration and adds it to the results; its table and plot for the report, where there is one."""
    from app.evaluation import confidence_calibration as calibrate

    if not options.confidence.is_dir():
        raise UsageError(f"the folder {options.confidence} of the maps does not exist.")
    errors = [calibrate.errors_of(pair, options.confidence) for pair in pairs]
    problems += [p for e in errors for p in e.problems]
    found = calibrate.calibrations(errors)
    if not found:
        return None
    print("\n" + calibrate.table(found, errors))  # noqa: T201
    results["calibration"] = calibrate.to_json(found)
    if options.out is None:
        return None
    plot = calibrate.plot(found)
    save_bytes(plot, options.out / "calibration.png")
    return calibrate.rows(found, errors), plot


def add_dropout(commands: Any) -> None:
    """Declares the command `dropout`."""
    p = commands.add_parser("dropout", help="copy complete subjects with one sequence left out of each")
    p.add_argument("--input", type=path, required=True, metavar="DIR", help="complete subjects")
    p.add_argument("--output", type=path, required=True, metavar="DIR", help="a new folder")
    which = p.add_mutually_exclusive_group()
    which.add_argument("--seed", type=natural, default=123456, help="default: 123456, the organisers'")
    which.add_argument("--each", action="store_true", help="leave out each of the four in turn")
    p.set_defaults(command=_dropout)


def _dropout(options: argparse.Namespace) -> int:
    from app.evaluation.missing_sequence_sets import make_dropout

    for subject, dropped in make_dropout(options.input, options.output, options.seed, options.each):
        log.info("%s: without %s", subject, dropped)
    return ExitCode.OK


def add_baselines(commands: Any) -> None:
    """Declares the command `baselines`."""
    p = commands.add_parser(
        "baselines", help="score what any network must beat: nothing, the best copy, the regression"
    )
    p.add_argument("--data", type=path, required=True, metavar="DIR", help="complete subjects with segmentations")
    p.add_argument("--weights", type=path, default=WEIGHTS_DIR, metavar="DIR", help="folder with manifest.json")
    p.add_argument("--jobs", type=positive, default=os.cpu_count() or 1, metavar="N", help="processes; default: cores")
    p.set_defaults(command=_baselines)


def _baselines(options: argparse.Namespace) -> int:
    from app.evaluation.baselines import score_baselines
    from app.evaluation.statistics import summarise, table

    results = score_baselines(options.data, options.jobs, options.weights)
    print(table({name: summarise(scores)["all"] for name, scores in results.items()}, "baseline"))  # noqa: T201
    return ExitCode.OK
