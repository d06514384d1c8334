"""Offer the commands that score, and what they need: evaluate, dropout, average, baselines."""

from __future__ import annotations

import argparse
import logging
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from app.cli.argument_types import natural, path, positive
from app.core.atomic_io import save_bytes
from app.core.config import WEIGHTS_DIR
from app.core.constants import TUMOUR_SEGMENTER
from app.core.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from app.evaluation.scoring import Pair, VolumeScores
    from app.inference.tumour.segmentation import TumourSegmenter
    from app.inference.tumour.tissnet import CompletingSegmenter

log = logging.getLogger(__name__)

#: Name of the 3D segmenter in a folder of weights, and its name until 0.1.0.
_FORMER_NAME: Final = "judge"


def add_evaluate(commands: Any) -> None:
    """Declare the command `evaluate`."""
    p = commands.add_parser("evaluate", help="score synthesised sequences, or segmentations, against the real ones")
    p.add_argument("--prediction", type=path, metavar="DIR", help="holds <subject>-<sequence>.nii.gz")
    p.add_argument("--reference", type=path, required=True, metavar="DIR", help="complete subjects")
    p.add_argument("--segmentations", type=path, metavar="DIR", help="<subject>-seg.nii.gz; default: the reference")
    p.add_argument("--predicted-segmentations", type=path, metavar="DIR", help="label maps to score as well, or alone")
    p.add_argument(
        "--segmentations-against", type=path, metavar="DIR", help="other label maps to compare those with, paired"
    )
    p.add_argument(
        "--perceptibility",
        metavar="NAME",
        help="a tissnet of `info`: Dice of the tumour that its S_p finds in each made sequence alone",
    )
    p.add_argument(
        "--downstream",
        action="store_true",
        help="also segment each exam with the synthesised sequence in the real one's place: Dice, NSD, HD95",
    )
    p.add_argument(
        "--tumour-segmenter",
        default=TUMOUR_SEGMENTER,
        metavar="NAME",
        help=f"the model that segments; default: {TUMOUR_SEGMENTER}",
    )
    p.add_argument("--judge", dest="tumour_segmenter", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    p.add_argument("--weights", type=path, default=WEIGHTS_DIR, metavar="DIR", help="folder with manifest.json")
    p.add_argument("--device", default="auto", help="of the tumour segmenter: auto, cpu or cuda[:N]")
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


@dataclass
class _Evaluation:
    """Collect the results of the steps of one evaluation.

    Attributes:
        pairs, others: of the prediction, and of the folder that it is compared with.
        problems: one sentence each.
        images: image scores of `pairs`.
        rows: everything for `scores.csv`.
        results: everything for `summary.json`.
        downstream: tables for the report.
        calibration: table and plot for the report.
    """

    pairs: list[Pair]
    others: list[Pair]
    problems: list[str]
    images: list[VolumeScores] = field(default_factory=list)
    rows: list[VolumeScores] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)
    downstream: list[list[list[str]]] = field(default_factory=list)
    calibration: tuple[list[list[str]], bytes] | None = None

    def add(self, scores: list[VolumeScores]) -> None:
        """Add rows with their problems."""
        self.rows += scores
        self.problems += [p for s in scores for p in s.problems]


def _evaluate(options: argparse.Namespace) -> int:
    # A model, device or folder that is not there must be known before minutes of scoring.
    _check_choice(options)
    segmenter = _open_tumour_segmenter(options) if options.downstream else None
    judge = _open_perceptibility(options) if options.perceptibility is not None else None
    evaluation = _find_volumes(options) if options.prediction is not None else _Evaluation([], [], [])
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
    if options.prediction is not None:
        _score_images(evaluation, options)
    if options.against is not None:
        _compare(evaluation, options)
    if segmenter is not None:
        _score_downstream(evaluation, segmenter)
    if judge is not None:
        _score_perceptibility(evaluation, judge)
    if options.predicted_segmentations is not None:
        _score_segmentations(evaluation, options)
    if options.confidence is not None:
        _calibrate_confidence(evaluation, options)
    problems = list(dict.fromkeys(evaluation.problems))
    if options.out is not None:
        _write(evaluation, problems, options)
    for problem in problems:
        log.warning("%s", problem)
    return ExitCode.SUBJECT_FAILED if problems else ExitCode.OK


def _open_tumour_segmenter(options: argparse.Namespace) -> TumourSegmenter:
    from app.inference.tumour.segmentation import TumourSegmenter
    from app.registry.manifest import read_manifest

    manifest, name = read_manifest(options.weights), options.tumour_segmenter
    if name == TUMOUR_SEGMENTER and name not in manifest.entries and _FORMER_NAME in manifest.entries:
        name = _FORMER_NAME
    return TumourSegmenter.open(manifest.entry(name), options.device)


def _check_choice(options: argparse.Namespace) -> None:
    """Refuse options that have nothing to work on.

    Raises:
        UsageError: there is neither a prediction nor segmentations, or an option's folder is not given.
    """
    if options.prediction is None:
        if options.predicted_segmentations is None:
            raise UsageError("nothing to score; give --prediction, --predicted-segmentations, or both.")
        for name in ("downstream", "against", "confidence", "perceptibility"):
            if getattr(options, name):
                raise UsageError(f"--{name} is of synthesised sequences; give their folder with --prediction.")
    if options.segmentations_against is not None and options.predicted_segmentations is None:
        raise UsageError("--segmentations-against compares with --predicted-segmentations; give both.")


def _open_perceptibility(options: argparse.Namespace) -> CompletingSegmenter:
    from app.core.config import RuntimeOptions
    from app.inference.device import Machine, choose_runtime
    from app.inference.tumour.tissnet import CompletingSegmenter
    from app.registry.manifest import read_manifest

    entry = read_manifest(options.weights).entry(options.perceptibility)
    runtime = choose_runtime(entry.files, Machine.probe(), RuntimeOptions(options.device, "torch"))
    return CompletingSegmenter.on(entry, runtime)


def _find_volumes(options: argparse.Namespace) -> _Evaluation:
    from app.evaluation.scoring import find_pairs

    pairs, problems = find_pairs(options.prediction, options.reference, options.segmentations)
    if options.against is None:
        return _Evaluation(pairs, [], problems)
    others, more = find_pairs(options.against, options.reference, options.segmentations)
    return _Evaluation(pairs, others, problems + more)


def _score_images(evaluation: _Evaluation, options: argparse.Namespace) -> None:
    from app.evaluation import statistics
    from app.evaluation.scoring import score_all

    evaluation.images = score_all(evaluation.pairs, options.border, options.jobs)
    evaluation.add(evaluation.images)
    evaluation.results["scores"] = statistics.summarise(evaluation.images)
    print(statistics.table(evaluation.results["scores"]))  # noqa: T201


def _compare(evaluation: _Evaluation, options: argparse.Namespace) -> None:
    from app.evaluation import statistics
    from app.evaluation.scoring import score_all

    second = score_all(evaluation.others, options.border, options.jobs)
    evaluation.problems += [p for s in second for p in s.problems]
    comparison = statistics.compare(evaluation.images, second)
    evaluation.results["comparison"] = comparison
    print("\n" + statistics.comparison_table(comparison, str(options.against)))  # noqa: T201


def _score_downstream(evaluation: _Evaluation, segmenter: TumourSegmenter) -> None:
    from app.evaluation.downstream import downstream_rows, downstream_summary, score_downstream
    from app.evaluation.statistics import markdown

    rows = score_downstream(evaluation.pairs, segmenter)
    evaluation.add(rows)
    evaluation.results["downstream"] = downstream_summary(rows)
    tables = [downstream_rows(rows, own) for own in (False, True)]
    evaluation.downstream += tables
    print("\n" + "\n\n".join(map(markdown, tables)))  # noqa: T201


def _score_segmentations(evaluation: _Evaluation, options: argparse.Namespace) -> None:
    from app.evaluation import statistics
    from app.evaluation.scoring import score_segmentations

    truths = options.segmentations or options.reference
    rows = score_segmentations(options.predicted_segmentations, truths)
    evaluation.add(rows)
    summary = evaluation.results["segmentations"] = statistics.summarise(rows)
    if "all" in summary:
        print("\n" + statistics.segmentation_table(summary["all"]))  # noqa: T201
    if options.segmentations_against is not None:
        others = score_segmentations(options.segmentations_against, truths)
        evaluation.problems += [p for s in others for p in s.problems]
        comparison = evaluation.results["segmentation_comparison"] = statistics.compare(rows, others)
        table = statistics.comparison_table(comparison, str(options.segmentations_against))
        print("\n" + table)  # noqa: T201


def _score_perceptibility(evaluation: _Evaluation, judge: CompletingSegmenter) -> None:
    from app.evaluation.perceptibility import perceptibility_rows, score_perceptibility
    from app.evaluation.statistics import markdown, summarise

    rows = score_perceptibility(evaluation.pairs, judge)
    evaluation.problems += [p for s in rows for p in s.problems]
    evaluation.results["perceptibility"] = summarise(rows)
    table = perceptibility_rows(rows)
    evaluation.downstream.append(table)
    print("\n" + markdown(table))  # noqa: T201


def _calibrate_confidence(evaluation: _Evaluation, options: argparse.Namespace) -> None:
    from app.evaluation import confidence_calibration as calibration

    if not options.confidence.is_dir():
        raise UsageError(f"the folder {options.confidence} of the maps does not exist.")
    samples = [calibration.sample_errors(pair, options.confidence) for pair in evaluation.pairs]
    evaluation.problems += [p for s in samples for p in s.problems]
    groups = calibration.calibrations(samples)
    if not groups:
        return
    print("\n" + calibration.table(groups, samples))  # noqa: T201
    evaluation.results["calibration"] = calibration.to_json(groups)
    if options.out is not None:
        plot = calibration.plot(groups)
        save_bytes(plot, options.out / "calibration.png")
        evaluation.calibration = calibration.rows(groups, samples), plot


def _write(evaluation: _Evaluation, problems: list[str], options: argparse.Namespace) -> None:
    from app.evaluation import statistics
    from app.report.evaluation_page import write_evaluation_report

    statistics.write_results(options.out, evaluation.rows, evaluation.results, problems)
    if options.prediction is None:
        log.info("Scores and summary: %s", options.out)
        return
    write_evaluation_report(
        evaluation.images,
        evaluation.results["scores"],
        problems,
        statistics.COLUMNS,
        evaluation.pairs,
        {"prediction": str(options.prediction), "reference": str(options.reference), "border": options.border},
        options.out / "report.html",
        evaluation.calibration,
        evaluation.downstream,
    )
    log.info("Scores, summary and report: %s", options.out)


def add_dropout(commands: Any) -> None:
    """Declare the command `dropout`."""
    p = commands.add_parser("dropout", help="copy complete subjects with one sequence left out of each")
    p.add_argument("--input", type=path, required=True, metavar="DIR", help="complete subjects")
    p.add_argument("--output", type=path, required=True, metavar="DIR", help="a new folder")
    which = p.add_mutually_exclusive_group()
    which.add_argument("--seed", type=natural, default=123456, help="default: 123456, the organisers'")
    which.add_argument("--each", action="store_true", help="leave out each of the four in turn")
    p.set_defaults(command=_dropout)


def _dropout(options: argparse.Namespace) -> int:
    from app.evaluation.missing_sequence_sets import make_missing_sequence_set

    exams = make_missing_sequence_set(options.input, options.output, options.seed, options.each)
    for subject, dropped in exams:
        log.info("%s: without %s", subject, dropped)
    return ExitCode.OK


def add_average(commands: Any) -> None:
    """Declare the command `average`."""
    p = commands.add_parser("average", help="average what several runs made of the same exams, voxel by voxel")
    p.add_argument("folders", type=path, nargs="+", metavar="DIR", help="outputs of synthesize, two or more")
    p.add_argument("--output", type=path, required=True, metavar="DIR", help="gets the means")
    p.set_defaults(command=_average)


def _average(options: argparse.Namespace) -> int:
    from app.evaluation.averaging import average_folders

    average_folders(options.folders, options.output)
    return ExitCode.OK


def add_baselines(commands: Any) -> None:
    """Declare the command `baselines`."""
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
