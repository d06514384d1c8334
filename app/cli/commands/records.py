"""The command on run records: merge-records."""

from __future__ import annotations

import argparse
from typing import Any

from app.cli.argument_types import path

_ABOUT = (
    "Writes tetrad-run.json and its page from the records of all parts (--part-id, --num-parts) in one report folder. "
    "The exit code is the one that a single run would have had."
)


def add_merge_records(commands: Any) -> None:
    """Declare the command `merge-records`."""
    p = commands.add_parser("merge-records", help="one record and page from those of a run's parts", description=_ABOUT)
    p.add_argument("folder", type=path, metavar="DIR", help="the --report-dir of the parts")
    p.set_defaults(command=_merge_records)


def _merge_records(options: argparse.Namespace) -> int:
    from app.batch.merging import merge_records

    return merge_records(options.folder)
