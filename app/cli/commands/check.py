"""The command `check`."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from app.cli.argument_types import EXIT_CODES
from app.cli.options import add_options, given
from app.core.config import NamingOptions, RunConfig
from app.core.errors import ExitCode
from app.core.plain_text import printable

if TYPE_CHECKING:
    from app.data.cases import Case
    from app.data.discovery import Scan

log = logging.getLogger(__name__)

#: Subjects whose files are shown where something was guessed.
_MOST_SHOWN = 20


class _Row(NamedTuple):
    """One line of the table."""

    subject: str
    present: str
    targets: str
    method: str
    problem: str | None = None


def add_check(commands: Any) -> None:
    """Declare the command `check`."""
    p = commands.add_parser("check", help="say what synthesize would do, from the headers alone", epilog=EXIT_CODES)
    add_options(p, RunConfig, "input_dir", "on_error", "complete_all")
    add_options(p, NamingOptions)
    p.add_argument("--json", action="store_true", help="print subjects, files and plans as JSON")
    p.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    from app.data.discovery import scan

    naming = NamingOptions(**given(options, NamingOptions))
    config = RunConfig(**given(options, RunConfig), naming=naming)
    exams = scan(config.input_dir, naming=naming)
    table, warnings, failed = _plan_all(exams.cases, config)
    if options.json:
        _print_json(exams, table)
    else:
        _print_table(table)
        _print_readings(exams.cases, everything=options.verbose)
    for warning in [*exams.notes, *dict.fromkeys(warnings)]:
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
            table.append(_Row(case.subject, present, "-", "cannot be done", str(error)))
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
    rows = [("subject", "present", "to make", "how"), *((printable(r.subject), *r[1:4]) for r in table)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())  # noqa: T201


def _print_readings(cases: Sequence[Case], everything: bool) -> None:
    """Print what each file was taken for: of all subjects, or of those where something was guessed."""
    shown = [c for c in cases if everything or any(r.guessed for r in c.readings)]
    if not shown:
        return
    print("\nWhat each file was taken for:")  # noqa: T201
    for case in shown[: None if everything else _MOST_SHOWN]:
        print(f"{printable(case.subject)}:")  # noqa: T201
        for reading in case.readings:
            if everything or reading.sequence is not None or reading.guessed:
                print(f"  {reading.sequence or '-':4} {printable(str(reading.path))} ({reading.why})")  # noqa: T201
    if not everything and len(shown) > _MOST_SHOWN:
        print(f"{len(shown) - _MOST_SHOWN} more subjects; --verbose shows all.")  # noqa: T201


def _print_json(exams: Scan, table: Sequence[_Row]) -> None:
    """Print subjects, files and plans as JSON."""
    subjects = [
        {
            "subject": case.subject,
            "to_make": [] if row.targets == "-" else row.targets.split(", "),
            "how": row.method,
            "problem": row.problem,
            "files": [
                {"path": str(r.path), "sequence": r.sequence, "why": r.why, "guessed": r.guessed} for r in case.readings
            ],
        }
        for case, row in zip(exams.cases, table, strict=True)
    ]
    print(json.dumps({"input": str(exams.root), "subjects": subjects, "notes": list(exams.notes)}, indent=2))  # noqa: T201
