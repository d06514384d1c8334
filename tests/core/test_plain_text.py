from __future__ import annotations

import logging
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.plain_text import PlainFormatter, printable, start_log


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sub-01", "sub-01"),
        ("Müller 1 患者", "Müller 1 患者"),
        ("a\nERROR: b", "a\\nERROR: b"),
        ("a\rmade", "a\\rmade"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b31m", "\\x9b31m"),
        ("abc\u202edcb", "abc\\u202edcb"),
        ("a\u2028b\u2029c", "a\\u2028b\\u2029c"),
        ("a\u200bb\ufeff", "a\\u200bb\\ufeff"),
        ("\udcff", "\\udcff"),
        ("a\u00a0b", "a\u00a0b"),
    ],
)
def test_what_acts_is_shown_instead(text, shown):
    assert printable(text) == shown


@given(st.text())
def test_nothing_that_acts_is_left(text):
    assert not {unicodedata.category(c) for c in printable(text)} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert printable(printable(text)) == printable(text)


def _record(level: int, message: str, *arguments: object, exc_info: object = None) -> logging.LogRecord:
    return logging.LogRecord("app", level, "f.py", 1, message, arguments, exc_info)  # type: ignore[arg-type]


class TestFormatter:
    def test_one_line_with_its_level_from_warnings_on(self):
        format = PlainFormatter().format
        assert format(_record(logging.INFO, "%s made", "a\nERROR: b")) == "a\\nERROR: b made"
        assert format(_record(logging.ERROR, "no \x1b[0m")) == "ERROR: no \\x1b[0m"

    def test_a_traceback_cannot_look_like_a_record(self):
        try:
            raise ValueError("x\nERROR: forged")
        except ValueError:
            text = PlainFormatter().format(_record(logging.DEBUG, "", exc_info=sys.exc_info()))
        assert "ValueError: x" in text
        assert all(line.startswith("    ") for line in text.split("\n")[1:])


def test_a_log_that_was_started_shows_plain_text(capsys):
    start_log(logging.INFO)
    logging.getLogger("app.x").warning("%s", "a\nb")
    logging.getLogger("app.x").debug("hidden")
    logging.getLogger("matplotlib").warning("of no use")
    assert capsys.readouterr().err == "WARNING: a\\nb\n"
