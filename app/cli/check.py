"""The command `check`."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from app.cli.argument_types import EXIT_CODES
from app.cli.options import add_options, given
from app.core.config import RunConfig
from app.core.errors import ExitCode

if TYPE_CHECKING:
    from app.data.cases import Case

log = logging.getLogger(__name__)


class _Row(NamedTuple):
    """One line of the table."""

    subject: str
    present: str
    targets: str
    method: str


def add_check(commands: Any) -> None:
    """Declare the command `check`."""
    p = commands.add_parser("check", help="say what synthesize would do, from the headers alone", epilog=EXIT_CODES)
    add_options(p, RunConfig, "input_dir", "on_error", "complete_all")
    p.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    from app.data.discovery import scan

    config = RunConfig(**given(options, RunConfig))
    exams = scan(config.input_dir)
    table, warnings, failed = _plan_all(exams.cases, config)
    _print_table(table)
    for warning in [*exams.notes, *warnings]:
        log.warning("%s", warning)
    if failed:
        return ExitCode.SUBJECT_FAILED
    if all(row.targets == "-" for row in table):
        if not exams.cases:
            log.error("%s holds no subject; expected files such as <ID>/<ID>-t1n.nii.gz.", config.input_dir)
        else:
            log.error("Nothing to do: no subject of %s lacks a sequence.", config.input_dir)
        return ExitCode.NOTHING_TO_DO
    return ExitCode.OK


def _plan_all(cases: Sequence[Case], config: RunConfig) -> tuple[list[_Row], list[str], bool]:
    """Plan every case: rows of the table, warnings, and whether a case cannot be done."""
    from app.core.errors import CaseError
    from app.data.cases import plan

    table, warnings, failed = [], [], False
    for case in cases:
        present = ", ".join(case.usable) or "none"
        try:
            todo = plan(case, config.on_error, config.complete_all)
        except CaseError as error:
            failed = True
            table.append(_Row(case.subject, present, "-", "cannot be done"))
            warnings.append(str(error))
            continue
        warnings.extend(todo.warnings)
        method = "model (fallback)" if todo.fallback else "model" if todo.targets else "complete"
        table.append(_Row(case.subject, present, ", ".join(todo.targets) or "-", method))
    return table, warnings, failed


def _print_table(table: Sequence[_Row]) -> None:
    """Print the rows in columns below their header; nothing where there are none."""
    if not table:
        return
    rows = [_Row("subject", "present", "to make", "how"), *table]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())  # noqa: T201
