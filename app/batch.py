"""Many subjects, one model: isolation, resume, parts, a clean end on SIGTERM, and a record of what was done."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from app import __version__
from app.cases import Case, scan
from app.config import RunConfig
from app.errors import ExitCode, NothingToDo, OutputError, UsageError
from app.files import save_bytes
from app.fleet import Fleet
from app.flow import Flow
from app.interrupts import Interrupted, Interrupts
from app.report.run import write_run_report
from app.runtime import Machine, choose_devices
from app.worker import Outcome, Status, Worker

log = logging.getLogger(__name__)


@dataclass
class Summary:
    """A whole run."""

    outcomes: list[Outcome]
    notes: tuple[str, ...]
    signal_number: int | None = None
    stopped: bool = False
    report_failed: bool = False

    def count(self, status: Status) -> int:
        """How many subjects ended so."""
        return sum(o.status == status for o in self.outcomes)


def exit_code_of(summary: Summary) -> int:
    """The one place where a run's exit code is decided: pessimistic, success comes last."""
    if summary.signal_number is not None:
        return 128 + summary.signal_number
    if summary.stopped or summary.report_failed or summary.count("failed"):
        return ExitCode.SUBJECT_FAILED
    return ExitCode.OK


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
    interrupts = Interrupts()
    summary = Summary([], found.notes)
    flow: Flow | Fleet | None = None
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
            _write_trace(config, summary, flow)
            if config.report_dir is not None:
                _write_record(config, summary, flow, started)
    counts = [summary.count("made"), summary.count("kept"), summary.count("complete"), summary.count("failed")]
    log.info("Done: %d made, %d kept, %d complete, %d failed.", *counts)
    return summary


def _open(config: RunConfig, cases: Sequence[Case], interrupts: Interrupts) -> Flow | Fleet:
    """The model, loaded: a device or weights that are not there must be known before an hour of work."""
    if config.device == "all" or "," in config.device:
        devices = choose_devices(config.device, Machine.probe())
        if len(devices) > 1:
            return Fleet(config, devices, cases, interrupts)
        config = replace(config, device=devices[0])
    flow = Flow(Worker(config), cases)
    log.info("Model %s: %s.", flow.model["name"], flow.runtime)
    return flow


def _run_all(config: RunConfig, flow: Flow | Fleet, count: int, interrupts: Interrupts, summary: Summary) -> None:
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


def _write_trace(config: RunConfig, summary: Summary, flow: Flow | Fleet) -> None:
    if config.profile_file is None:
        return
    try:
        flow.trace.write(config.profile_file)
    except OutputError as error:
        log.error("%s", error)
        summary.report_failed = True


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


def _with_history(summary: Summary, path: Path) -> list[dict[str, Any]]:
    """The outcomes for the record; of outputs that were kept also what the record before says of their making."""
    before: dict[str, list[tuple[dict[str, Any], set[str]]]] = {}
    # Whatever else lies there bears no witness.
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        earlier = [(s, {o["sha256"] for o in s["outputs"]}) for s in json.loads(path.read_bytes())["subjects"]]
        for form, sums in earlier:
            before.setdefault(form["subject"], []).append((form, sums))
    told = []
    for outcome in summary.outcomes:
        form = dict(vars(outcome))
        known, sums = _taken_out(before.get(outcome.subject, []), outcome)
        if outcome.status == "kept" and {o["sha256"] for o in outcome.outputs} <= sums:
            warnings = dict.fromkeys([*known.get("warnings", []), *outcome.warnings])
            form = {**form, **known, "status": "kept", "warnings": list(warnings)}
        told.append(form)
    # A run that was ended early has not come to all of them.
    rest = [form for forms in before.values() for form, _ in forms]
    return told + (rest if summary.signal_number or summary.stopped else [])


def _taken_out(earlier: list[tuple[dict[str, Any], set[str]]], outcome: Outcome) -> tuple[dict[str, Any], set[str]]:
    """Removes from a subject's earlier outcomes the one of the same exam: of the same outputs, or that lacked the same.

    Returns:
        It and the checksums of its outputs; empty ones where the record before says nothing.
    """
    made = {o["sha256"] for o in outcome.outputs}

    def likeness(number: int) -> tuple[bool, bool]:
        form, sums = earlier[number]
        return bool(made) and made <= sums, form.get("lacked") == list(outcome.lacked)

    if not earlier:
        return {}, set()
    return earlier.pop(max(range(len(earlier)), key=likeness))


def _write_record(config: RunConfig, summary: Summary, flow: Flow | Fleet, started: datetime) -> None:
    record = {
        "tetrad": __version__,
        "python": platform.python_version(),
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "exit_code": int(exit_code_of(summary)),
        "config": config.to_json(),
        "model": flow.model,
        "runtime": flow.runtime,
        "notes": list(summary.notes),
    }
    assert config.report_dir is not None
    part = f"-part{config.part_id}of{config.num_parts}" if config.num_parts > 1 else ""
    path = config.report_dir / f"tetrad-run{part}.json"
    record["subjects"] = _with_history(summary, path)
    try:
        save_bytes((json.dumps(record, indent=2) + "\n").encode(), path)
        if summary.signal_number is None:
            # Drawing takes time that a process told to end does not have.
            write_run_report(record, path.with_suffix(".html"))
    except OutputError as error:
        log.error("%s", error)
        summary.report_failed = True
        return
    if summary.signal_number is None:
        log.info("Run record and report: %s, .html", path)
    else:
        log.info("Run record: %s", path)
