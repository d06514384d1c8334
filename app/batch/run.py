"""Complete the subjects of a folder: isolation, resume, parts, a clean end on SIGTERM, and a record of the work."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from app.batch.clinic.studies import find_studies
from app.batch.engines.shared_folders import with_absolute_paths
from app.batch.outcomes import STATUSES, Outcome, Summary
from app.batch.run_record import write_record, write_trace
from app.batch.runner import SubjectRunner, names_several, open_runner
from app.core.atomic_io import sweep
from app.core.config import ClinicConfig, RunConfig, SegmentConfig
from app.core.container import is_lost_with_container
from app.core.errors import NothingToDo, UsageError
from app.core.signals import Interrupted, SignalGuard
from app.data.cases import Case
from app.data.discovery import Scan, scan

log = logging.getLogger(__name__)


def run(config: RunConfig) -> Summary:
    """Make what the subjects of `config.input_dir` lack.

    Raises:
        UsageError: a folder cannot be used.
        NothingToDo: no subject lacks anything.
        WeightsError, DeviceError: the model cannot be loaded.
    """
    if config.cluster.engine == "ray" or names_several(config):
        config = with_absolute_paths(config)
    _check_folders(config)
    started = datetime.now(UTC)
    inventory = _scan_input(config)
    _check_work(inventory.cases, config)
    cases = _choose_part(inventory.cases, config)
    summary = Summary([], inventory.notes)
    _complete(config, cases, summary, started)
    _log_counts(summary)
    return summary


# ------------------------------------------------------------ before the work


def _scan_input(config: RunConfig) -> Scan:
    own = [config.output_dir, *filter(None, [config.report_dir, *_folders_beside(config)])]
    if isinstance(config, ClinicConfig):
        inventory = find_studies(config.input_dir, exclude=own)
    else:
        inventory = scan(config.input_dir, exclude=own, naming=config.naming, one_output=config.takes_complete)
    for note in inventory.notes:
        log.warning("%s", note)
    return inventory


def _check_work(cases: Sequence[Case], config: RunConfig) -> None:
    if not cases:
        raise NothingToDo(
            f"{config.input_dir} holds no subject; "
            "expected files such as <ID>/<ID>-t1n.nii.gz, <ID>_flair.nii.gz or a BIDS tree; for DICOM give --clinic."
        )
    whole = (c.problem is None and not c.absent and not c.empty and not c.faults and not c.runs for c in cases)
    if not config.takes_complete and all(whole):
        raise NothingToDo(f"all {len(cases)} subjects of {config.input_dir} have the four sequences; nothing to make.")


def _choose_part(cases: Sequence[Case], config: RunConfig) -> Sequence[Case]:
    part = cases[config.part_id :: config.num_parts]
    if config.num_parts > 1:
        # Nothing to do may be a mistake, as where each task of an array has an input folder of its own.
        say: Callable[..., None] = log.info if part else log.warning
        say("Part %d of %d: %d of %d subjects.", config.part_id, config.num_parts, len(part), len(cases))
    return part


def _check_folders(config: RunConfig) -> None:
    """Refuse folders that lie in one another, and make those that are not there."""
    _check_places(config)
    trace = None if config.profile_file is None else config.profile_file.absolute().parent
    beside = [folder for folder in (config.report_dir, *_folders_beside(config), trace) if folder is not None]
    for folder in (config.output_dir, *beside):
        _make_writable(folder)
    for folder in filter(None, [config.output_dir, *_folders_beside(config), config.report_dir]):
        sweep(folder)
    if not is_lost_with_container(config.output_dir):
        for folder in filter(is_lost_with_container, beside):
            log.warning("%s lies in the container itself and goes with it; mount a folder there.", folder)


def _folders_beside(config: RunConfig) -> dict[Path, str]:
    """List the folders that get images beside the output's, and what for."""
    folders: dict[Path, str] = {}
    if config.confidence_dir is not None:
        folders[config.confidence_dir] = "confidence"
    if isinstance(config, SegmentConfig) and config.synthesis_dir is not None:
        folders[config.synthesis_dir] = "made sequences"
    return folders


def _check_places(config: RunConfig) -> None:
    source, output = config.input_dir.resolve(), config.output_dir.resolve()
    if source == output:
        raise UsageError(f"the output {config.output_dir} is the input folder; give another one.")
    if config.report_dir is not None and _lies_in(config.report_dir, output):
        raise UsageError(f"the report folder {config.report_dir} lies in the output, which holds images only.")
    for folder, what in _folders_beside(config).items():
        # What was made must not be taken for a scan by the next run.
        if folder.resolve() == source:
            raise UsageError(f"the folder {folder} for {what} is the input; give another one.")
    if config.confidence_dir is not None and _lies_in(config.confidence_dir, output):
        raise UsageError(
            f"the folder {config.confidence_dir} for confidence lies in the output, which holds images only."
        )
    if config.profile_file is not None and output in config.profile_file.resolve().parents:
        raise UsageError(f"the trace {config.profile_file} lies in the output, which holds images only.")


def _lies_in(folder: Path, output: Path) -> bool:
    place = folder.resolve()
    return place == output or output in place.parents


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made ({error.strerror}); choose another folder.") from None
    if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
        raise UsageError(f"{folder} may not be written to by user {os.geteuid()}; make it writable.")


# ------------------------------------------------------------ the work


def _complete(config: RunConfig, cases: Sequence[Case], summary: Summary, started: datetime) -> None:
    """Take the subjects through the model; whatever ends that, write the record."""
    guard = SignalGuard()
    runner: SubjectRunner | None = None
    try:
        with guard.installed():
            try:
                runner = open_runner(config, cases, guard)
                with _progress_bar(len(cases)) as bar, runner:
                    _Collector(config, summary, len(cases), bar).take_all(runner, guard)
            except Interrupted as interruption:
                summary.signal_number = interruption.number
                log.error("%s: stopped cleanly; run again to do the rest.", interruption)
                # Still guarded: a second signal must not cost the record.
                _conclude(config, summary, runner, started)
                runner = None
    finally:
        _conclude(config, summary, runner, started)


def _conclude(config: RunConfig, summary: Summary, runner: SubjectRunner | None, started: datetime) -> None:
    """Write the trace and the record, where there is a runner to tell of."""
    summary.outcomes.sort(key=lambda outcome: outcome.subject)
    if runner is not None:
        write_trace(config, summary, runner)
        write_record(config, summary, runner, started)


@contextlib.contextmanager
def _progress_bar(count: int) -> Iterator[tqdm]:
    """Show a bar on a terminal, with the log above it."""
    on_terminal = sys.stderr.isatty()
    with logging_redirect_tqdm() if on_terminal else contextlib.nullcontext():
        with tqdm(total=count, unit="subject", disable=not on_terminal) as bar:
            yield bar


class _Collector:
    """Collect outcomes into the summary, and say each."""

    def __init__(self, config: RunConfig, summary: Summary, count: int, bar: tqdm) -> None:
        self._summary, self._count, self._bar = summary, count, bar
        self._stops = config.on_error == "stop"

    def take_all(self, runner: SubjectRunner, guard: SignalGuard) -> None:
        """Take every outcome, up to a failure that ends the run or a signal.

        Raises:
            Interrupted: a signal came; what was begun is written and taken.
        """
        try:
            self._take_until_failure(runner)
            if self._summary.stopped:
                # Other devices may have been at work on subjects of their own.
                self._take(runner.drain())
        except Interrupted:
            with guard.shielded():
                self._take(runner.drain())
            raise

    def _take_until_failure(self, runner: SubjectRunner) -> None:
        for outcome in runner:
            self._bar.update()
            self._note(outcome)
            if self._stops and outcome.status == "failed":
                self._summary.stopped = True
                log.error("Stopped at the first failure (--on-error stop).")
                return

    def _take(self, outcomes: Iterator[Outcome]) -> None:
        for outcome in outcomes:
            self._note(outcome)

    def _note(self, outcome: Outcome) -> None:
        if any(outcome is noted for noted in self._summary.outcomes[-1:]):
            # A signal came just after it was noted, before it was ticked off.
            return
        self._summary.outcomes.append(outcome)
        say: Callable[..., None] = log.error if outcome.status == "failed" else log.info
        for warning in outcome.warnings:
            log.warning("%s", warning)
        say("[%d/%d] %s", len(self._summary.outcomes), self._count, outcome.sentence())


def _log_counts(summary: Summary) -> None:
    counts = [summary.count(status) for status in STATUSES]
    log.info("Done: %d made, %d kept, %d complete, %d failed.", *counts)
