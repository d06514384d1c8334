"""Write the record of a run: JSON, page and trace."""

from __future__ import annotations

import contextlib
import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app import __version__
from app.batch.outcomes import Outcome, Summary, exit_code_of
from app.batch.runner import SubjectRunner
from app.core.atomic_io import save_bytes
from app.core.config import RunConfig
from app.core.errors import OutputError
from app.report.run_page import write_run_report

log = logging.getLogger(__name__)


def write_trace(config: RunConfig, summary: Summary, runner: SubjectRunner) -> None:
    """Write the run's trace where one is wanted; note it in the summary where that fails."""
    if config.profile_file is None:
        return
    try:
        runner.trace.write(config.profile_file)
    except OutputError as error:
        log.error("%s", error)
        summary.report_failed = True


def write_record(config: RunConfig, summary: Summary, runner: SubjectRunner, started: datetime) -> None:
    """Write the run's record and page where they are wanted; note it in the summary where that fails."""
    if config.report_dir is None:
        return
    path = config.report_dir / f"tetrad-run{_part_suffix(config)}.json"
    subjects = [outcome.to_json() for outcome in with_history(summary, read_outcomes(path))]
    record = {**_header(config, summary, runner, started), "subjects": subjects}
    try:
        save_bytes((json.dumps(record, indent=2) + "\n").encode(), path)
        # Drawing takes time that a process told to end does not have.
        has_page = summary.signal_number is None and write_page(record, path.with_suffix(".html"))
    except OutputError as error:
        log.error("%s", error)
        summary.report_failed = True
        return
    log.info("Run record and report: %s, .html" if has_page else "Run record: %s", path)


def write_page(record: Mapping[str, Any], path: Path) -> bool:
    """Write the page of a run; say so where that fails for want of anything but room for it.

    The images and the record are there: what draws them may lack memory or a package.

    Returns:
        Whether the page is there.

    Raises:
        OutputError: the disk is full, or the folder cannot be written to.
    """
    try:
        write_run_report(record, path)
    except OutputError:
        raise
    except Exception as error:
        log.debug("", exc_info=True)
        # One of an earlier run would be taken for this run's.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        log.error("The page %s lacks: it could not be made (%s).", path, error or type(error).__name__)
        return False
    return True


def _part_suffix(config: RunConfig) -> str:
    return f"-part{config.part_id}of{config.num_parts}" if config.num_parts > 1 else ""


def _header(config: RunConfig, summary: Summary, runner: SubjectRunner, started: datetime) -> dict[str, Any]:
    return {
        "tetrad": __version__,
        "python": platform.python_version(),
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "exit_code": int(exit_code_of(summary)),
        "config": config.to_json(),
        "model": runner.model,
        "runtime": runner.runtime,
        "notes": list(summary.notes),
    }


def read_outcomes(path: Path) -> list[Outcome]:
    """Read the subjects of an earlier record; none where there is no record, or something else of its name."""
    try:
        return [Outcome.from_json(form) for form in json.loads(path.read_bytes())["subjects"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def with_history(summary: Summary, earlier: Sequence[Outcome]) -> list[Outcome]:
    """Add to outputs that were kept what the record before says of their making.

    Args:
        earlier: the outcomes of the record before.

    Returns:
        The run's outcomes. Where the run was ended early, also the earlier ones of subjects that it has not come to.
    """
    unclaimed: dict[str, list[Outcome]] = {}
    for outcome in earlier:
        unclaimed.setdefault(outcome.subject, []).append(outcome)
    outcomes = [_recall(outcome, unclaimed.get(outcome.subject, [])) for outcome in summary.outcomes]
    if summary.signal_number or summary.stopped:
        outcomes += [outcome for others in unclaimed.values() for outcome in others]
    return outcomes


def _recall(outcome: Outcome, earlier: list[Outcome]) -> Outcome:
    """Take the same exam out of a subject's earlier outcomes; of a kept one, give its history.

    An exam is the same where its outputs are, or else where it lacked the same.
    """
    if not earlier:
        return outcome

    def likeness(number: int) -> tuple[bool, bool]:
        other = earlier[number]
        return bool(outcome.outputs) and outcome.checksums <= other.checksums, other.lacked == outcome.lacked

    known = earlier.pop(max(range(len(earlier)), key=likeness))
    if outcome.status != "kept" or not outcome.checksums <= known.checksums:
        return outcome
    return replace(
        known,
        status="kept",
        warnings=tuple(dict.fromkeys([*known.warnings, *outcome.warnings])),
        input_sha256=known.input_sha256 or outcome.input_sha256,
    )
