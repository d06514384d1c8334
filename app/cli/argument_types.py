"""Types of arguments, and the text on exit codes that several commands show."""

from __future__ import annotations

import argparse
from pathlib import Path

from app.core.constants import VIEWS, View

EXIT_CODES = (
    "exit codes: 0 every subject done; 1 some subject failed; 2 usage; 3 nothing to do; "
    "4 weights missing or damaged; 5 the device asked for is not there; 143 ended by SIGTERM"
)


def path(text: str) -> Path:
    """A path; an empty text, as an unset shell variable leaves, is refused."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty (an unset variable?)")
    return Path(text)


def positive(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def natural(text: str) -> int:
    """A whole number from 0 up."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 up")
    return int(text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def views(text: str) -> tuple[View, ...]:
    """Names of views, separated by commas, in the order of the view code."""
    names = text.split(",")
    if unknown := [n for n in names if n not in VIEWS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no view; use {', '.join(VIEWS)}")
    return tuple(v for v in VIEWS if v in names)
