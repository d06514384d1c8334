"""Many subjects, one model: isolation, resume, parts, a clean end on SIGTERM, and a record of what was done."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from app.batch.case_processor import CaseProcessor
from app.batch.multi_device import MultiDeviceRunner
from app.batch.outcomes import Outcome, Summary
from app.batch.prefetch import PrefetchingRunner
from app.batch.run_record import write_record, write_trace
from app.core.config import RunConfig
from app.core.errors import NothingToDo, UsageError
from app.core.signals import Interrupted, SignalGuard
from app.data.cases import Case
from app.data.discovery import scan
from app.inference.device import Machine, choose_devices

log = logging.getLogger(__name__)


def run(config: RunConfig) -> Summary:
    """Makes what the subjects of `config.input_dir` lack.

    Raises:
        UsageError: a folder cannot be used.
        NothingToDo: no subject lacks anything.
        WeightsError, DeviceError: the model cannot be loaded.
    """
    _check_folders(config)
    started = datetime.now(UTC)
    found = scan(
        config.input_dir, exclude=[config.output_dir, *filter(None, [config.report_dir, config.confidence_dir])]
    )
    for note in found.notes:
        log.warning("%s", note)
    cases = found.cases[config.part_id :: config.num_parts]
    _require_work(found.cases, config)
    if config.num_parts > 1:
        log.info("Part %d of %d: %d of %d subjects.", config.part_id, config.num_parts, len(cases), len(found.cases))
    interrupts = SignalGuard()
    summary = Summary([], found.notes)
    flow: PrefetchingRunner | MultiDeviceRunner | None = None
    try:
        with interrupts.installed():
            flow = _open(config, cases, interrupts)
            _run_all(config, flow, len(cases), interrupts, summary)
    except Interrupted as interruption:
        summary.signal_number = interruption.number
        log.error("%s: stopped cleanly; run again to do the rest.", interruption)
    finally:
        summary.outcomes.sort(key=lambda outcome: outcome.subject)
        if flow is not None:
            write_trace(config, summary, flow)
            if config.report_dir is not None:
                write_record(config, summary, flow, started)
    counts = [summary.count("made"), summary.count("kept"), summary.count("complete"), summary.count("failed")]
    log.info("Done: %d made, %d kept, %d complete, %d failed.", *counts)
    return summary


def _open(config: RunConfig, cases: Sequence[Case], interrupts: SignalGuard) -> PrefetchingRunner | MultiDeviceRunner:
    """The model, loaded: a device or weights that are not there must be known before an hour of work."""
    if config.runtime.device == "all" or "," in config.runtime.device:
        devices = choose_devices(config.runtime.device, Machine.probe())
        if len(devices) > 1:
            return MultiDeviceRunner(config, devices, cases, interrupts)
        config = replace(config, runtime=replace(config.runtime, device=devices[0]))
    flow = PrefetchingRunner(CaseProcessor(config), cases)
    log.info("Model %s: %s.", flow.model["name"], flow.runtime)
    return flow


def _run_all(
    config: RunConfig,
    flow: PrefetchingRunner | MultiDeviceRunner,
    count: int,
    interrupts: SignalGuard,
    summary: Summary,
) -> None:
    on_terminal = sys.stderr.isatty()
    with logging_redirect_tqdm() if on_terminal else contextlib.nullcontext():
        with tqdm(total=count, unit="subject", disable=not on_terminal) as bar:
            with flow:
                try:
                    for outcome in flow:
                        bar.update()
                        _note(outcome, count, summary)
                        if outcome.status == "failed" and config.on_error == "stop":
                            summary.stopped = True
                            log.error("Stopped at the first failure (--on-error stop).")
                            break
                    else:
                        return
                    # Other devices may have been at work on subjects of their own.
                    for outcome in flow.rest():
                        _note(outcome, count, summary)
                except Interrupted:
                    with interrupts.shielded():
                        for outcome in flow.rest():
                            _note(outcome, count, summary)
                    raise


def _note(outcome: Outcome, count: int, summary: Summary) -> None:
    if any(outcome is noted for noted in summary.outcomes[-1:]):
        # A signal came just after it was noted, before it was ticked off.
        return
    summary.outcomes.append(outcome)
    say: Callable[..., None] = log.error if outcome.status == "failed" else log.info
    for warning in outcome.warnings:
        log.warning("%s", warning)
    say("[%d/%d] %s", len(summary.outcomes), count, outcome.sentence())


def _check_folders(config: RunConfig) -> None:
    source, output = config.input_dir.resolve(), config.output_dir.resolve()
    if source == output:
        raise UsageError(f"the output {config.output_dir} is the input folder; give another one.")
    if config.report_dir is not None:
        report = config.report_dir.resolve()
        if report == output or output in report.parents:
            raise UsageError(f"the report folder {config.report_dir} lies in the output, which holds images only.")
    if config.confidence_dir is not None:
        place = config.confidence_dir.resolve()
        if place == output or output in place.parents:
            raise UsageError(f"the folder {config.confidence_dir} for confidence lies in the output, "
                             "which holds images only.")  # fmt: skip
        if place == source:
            raise UsageError(f"the folder {config.confidence_dir} for confidence is the input; give another one.")
    if config.profile_file is not None and output in config.profile_file.resolve().parents:
        raise UsageError(f"the trace {config.profile_file} lies in the output, which holds images only.")
    trace = None if config.profile_file is None else config.profile_file.absolute().parent
    for folder in filter(None, [config.output_dir, config.report_dir, config.confidence_dir, trace]):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder} cannot be made ({error.strerror}); choose another folder.") from None
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            raise UsageError(f"{folder} may not be written to by user {os.geteuid()}; make it writable.")


def _require_work(cases: Sequence[Case], config: RunConfig) -> None:
    if not cases:
        raise NothingToDo(
            f"{config.input_dir} holds no subject; "
            "expected files such as <ID>/<ID>-t1n.nii.gz, <ID>_flair.nii.gz or a BIDS tree."
        )
    if all(c.problem is None and not c.absent and not c.empty and not c.faults for c in cases):
        raise NothingToDo(f"all {len(cases)} subjects of {config.input_dir} have the four sequences; nothing to make.")
