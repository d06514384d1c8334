"""Record where a run's time goes: spans per stage and subject, as a Chrome trace.

chrome://tracing and ui.perfetto.dev show such a file.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.core.atomic_io import save_bytes


class Trace:
    """Collect spans from any thread.

    Args:
        keep: hold every span for `write`; without it, stages are timed only.
    """

    def __init__(self, keep: bool = True) -> None:
        self._keep = keep
        self._events: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    @contextmanager
    def span(self, stage: str, subject: str, stages: dict[str, float]) -> Iterator[None]:
        """Time what happens inside, and add its seconds to those of the stage in `stages`."""
        start = time.monotonic()
        try:
            yield
        finally:
            end = time.monotonic()
            stages[stage] = stages.get(stage, 0.0) + end - start
            if self._keep:
                self.add([_event(stage, subject, start, end)])

    def take(self) -> list[dict[str, Any]]:
        """Give every span kept so far, once."""
        with self._lock:
            events, self._events = self._events, []
        return events

    def add(self, events: list[dict[str, Any]]) -> None:
        """Add spans, such as those of another process."""
        with self._lock:
            self._events.extend(events)

    def write(self, path: Path) -> None:
        """Write the trace.

        Raises:
            OutputError: it cannot be written.
        """
        with self._lock:
            form = {"traceEvents": self._events, "displayTimeUnit": "ms"}
            save_bytes(json.dumps(form).encode(), path)


def _event(stage: str, subject: str, start: float, end: float) -> dict[str, Any]:
    """Describe a span of this thread, in microseconds."""
    return {
        "name": stage,
        "cat": "tetrad",
        "ph": "X",
        # The machine's clock, so that several processes' spans lie on one line.
        "ts": round(1e6 * start),
        "dur": round(1e6 * (end - start)),
        "pid": os.getpid(),
        "tid": threading.get_native_id(),
        "args": {"subject": subject},
    }
