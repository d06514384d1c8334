"""The record of a run on disk: JSON, page and trace."""

from __future__ import annotations

import contextlib
import json
import logging
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app import __version__
from app.batch.multi_device import MultiDeviceRunner
from app.batch.outcomes import Outcome, Summary, exit_code_of
from app.batch.prefetch import PrefetchingRunner
from app.core.atomic_io import save_bytes
from app.core.config import RunConfig
from app.core.errors import OutputError
from app.report.run_page import write_run_report

log = logging.getLogger(__name__)


def write_trace(config: RunConfig, summary: Summary, flow: PrefetchingRunner | MultiDeviceRunner) -> None:
    if config.profile_file is None:
        return
    try:
        flow.trace.write(config.profile_file)
    except OutputError as error:
        log.error("%s", error)
        summary.report_failed = True


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


def write_record(
    config: RunConfig, summary: Summary, flow: PrefetchingRunner | MultiDeviceRunner, started: datetime
) -> None:
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
