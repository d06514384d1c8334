"""Check arguments, and keep the text on exit codes for several commands."""

from __future__ import annotations

import argparse
from pathlib import Path

from app.core.constants import VIEWS, View

#: Epilog of the commands that complete exams.
EXIT_CODES = (
    "exit codes: 0 every subject done; 1 some subject failed; 2 usage; 3 nothing to do; "
    "4 weights missing or damaged; 5 the device asked for is not there; 143 ended by SIGTERM"
)


def path(text: str) -> Path:
    """Take a path; refuse an empty text, as an unset shell variable leaves."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty (an unset variable?)")
    return Path(text)


def positive(text: str) -> int:
    """Take a whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def natural(text: str) -> int:
    """Take a whole number from 0 up."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return int(text)


def share(text: str) -> float:
    """Take a number from 0 to 1."""
    return _number_to(1, text)


def factor(text: str) -> float:
    """Take a number from 0 to 3."""
    return _number_to(3, text)


def _number_to(most: int, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to {most}")
    return value


def views(text: str) -> tuple[View, ...]:
    """Take names of views, separated by commas; return them in `VIEWS` order."""
    names = text.split(",")
    if unknown := [n for n in names if n not in VIEWS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no view; use {', '.join(VIEWS)}")
    return tuple(v for v in VIEWS if v in names)
