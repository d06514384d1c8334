"""The command `check`."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from app.cli.argument_types import EXIT_CODES, path
from app.core.config import ON_ERROR
from app.core.errors import ExitCode

log = logging.getLogger(__name__)


def add_check(commands: Any) -> None:
    """Declares the command `check`."""
    p = commands.add_parser("check", help="say what synthesize would do, from the headers alone", epilog=EXIT_CODES)
    p.add_argument("--input", type=path, default=Path("/input"), metavar="DIR", help="default: /input")
    p.add_argument("--on-error", choices=ON_ERROR, default="fallback")
    p.add_argument("--complete-all", action="store_true")
    p.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    from app.core.errors import CaseError
    from app.data.cases import plan
    from app.data.discovery import scan

    found = scan(options.input)
    rows, input_warnings, failed, work = [("subject", "present", "to make", "how")], list(found.notes), False, False
    for case in found.cases:
        present = ", ".join(case.usable) or "none"
        try:
            todo = plan(case, options.on_error, options.complete_all)
        except CaseError as error:
            failed = True
            rows.append((case.subject, present, "-", "cannot be done"))
            input_warnings.append(str(error))
            continue
        work = work or bool(todo.targets)
        input_warnings.extend(todo.warnings)
        how = "model (fallback)" if todo.fallback else "model" if todo.targets else "complete"
        rows.append((case.subject, present, ", ".join(todo.targets) or "-", how))
    if len(rows) > 1:
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())  # noqa: T201
    for remark in input_warnings:
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
