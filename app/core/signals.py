"""Turn SIGTERM and SIGINT into an exception that arrives where nothing is half done."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Interrupted(BaseException):
    """Report SIGTERM or SIGINT, where nothing is half done."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class SignalGuard:
    """Raise `Interrupted` at the first SIGTERM or SIGINT, but not inside `shielded()`.

    Later ones change nothing: what the first one began to end must end well, and callers repeat themselves.
    """

    def __init__(self, signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGINT)) -> None:
        self._signals = signals
        self._shields = 0
        self._pending: int | None = None
        self._delivered = False

    @property
    def waiting(self) -> int:
        """Return the signal that waits for the end of a shield, else 0; a loop may end by it."""
        return self._pending or 0

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Deliver the signals as `Interrupted` inside this context."""
        previous = {}
        self._delivered = False
        # Python allows handlers in the main thread only; elsewhere the caller's stay.
        with contextlib.suppress(ValueError):
            for number in self._signals:
                previous[number] = signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def shielded(self) -> Iterator[None]:
        """Hold signals back until the outermost shield ends."""
        self._shields += 1
        try:
            yield
        finally:
            self._shields -= 1
        if self._shields == 0 and self._pending is not None:
            number, self._pending = self._pending, None
            self._deliver(number)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._shields:
            self._pending = number
        else:
            self._deliver(number)

    def _deliver(self, number: int) -> None:
        if not self._delivered:
            self._delivered = True
            raise Interrupted(number)
