"""Keep a command at work whose caller closed its standard streams, or whose reader has gone."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


def open_standard_streams() -> None:
    """Open on /dev/null what the caller closed of input, output and errors.

    The next file that is opened would get the number of a closed one, and messages would go into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The system gives the lowest free number. Child processes need it as well.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))


class LastingStream:
    """Write to a stream for as long as somebody takes it, then to nowhere.

    Args:
        forgiven: the errors by which the stream is given up; others are raised.
    """

    def __init__(self, stream: TextIO, forgiven: type[OSError]) -> None:
        self._stream, self._forgiven = stream, forgiven

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text; return its length."""
        try:
            return self._stream.write(text)
        except self._forgiven:
            self.give_up()
            return len(text)

    def flush(self) -> None:
        """Write what is held back."""
        try:
            self._stream.flush()
        except self._forgiven:
            self.give_up()

    def give_up(self) -> None:
        """Lead the stream to nowhere, and what it still holds."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        with contextlib.suppress(OSError):
            self._stream.flush()


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Hold that nobody who has stopped reading ends the work or changes the exit code, inside this context.

    A full disk below the standard output is an error all the same: its reader would miss the end of a text.
    """
    stdout: Any = LastingStream(sys.stdout, BrokenPipeError)
    stderr: Any = LastingStream(sys.stderr, OSError)
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            yield
        finally:
            try:
                stdout.flush()
            except OSError:
                # It was said already; the interpreter would try once more and change the exit code.
                stdout.give_up()
            stderr.flush()
