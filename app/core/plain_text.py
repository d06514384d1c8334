"""Show text of others without what could act on a terminal, forge a line or turn it round."""

from __future__ import annotations

import logging
import sys
import unicodedata
from typing import Final

#: Control and format characters, halves of surrogate pairs (bytes that are no text), ends of lines and paragraphs.
_ACTING: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
#: Packages whose own messages say nothing to a user.
_NOISY: Final = ("matplotlib", "PIL", "torch", "onnxscript", "onnx_ir")


def printable(text: str) -> str:
    r"""Escape the characters that are not shown but act, such as `\n`, `\x1b` and `\u202e`."""
    if text.isprintable():
        return text
    return "".join(_escaped(c) if unicodedata.category(c) in _ACTING else c for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class PlainFormatter(logging.Formatter):
    """Format a record as one line, its level before it from warnings on; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record; nothing in it can end its line or look like another record."""
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname}: "
        lines = [prefix + printable(record.getMessage())]
        if record.exc_info:
            lines += ["    " + printable(line) for line in self.formatException(record.exc_info).split("\n")]
        return "\n".join(lines)


def start_log(level: int) -> None:
    """Send this process's log to the standard error stream, in plain text."""
    logging.basicConfig(level=level, stream=sys.stderr, force=True)
    logging.getLogger().handlers[0].setFormatter(PlainFormatter())
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # Whatever it says is said again, with what to do.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
