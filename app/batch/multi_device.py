"""Run several devices at once: a process with its own model for each, subjects handed out as they become free."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from app.batch.outcomes import Outcome
from app.batch.prefetch import PrefetchingRunner
from app.batch.processors import open_processor
from app.batch.subject_processor import SubjectProcessor
from app.batch.tracing import Trace
from app.core.config import RunConfig
from app.core.errors import DeviceError, TetradError
from app.core.plain_text import start_log
from app.core.signals import Interrupted, SignalGuard
from app.data.cases import Case

log = logging.getLogger(__name__)

#: Forked processes cannot use CUDA, and would share this one's threads and locks.
START_METHOD = "spawn"
_POLL_SECONDS = 0.5
#: How long processes that were told to end may take over what they have begun.
_GRACE_SECONDS = 60.0


class MultiDeviceRunner:
    """Give every subject's outcome, as `PrefetchingRunner` does, with a process per device.

    A process that dies takes only the subjects with it that it had begun; they are reported as failed. Each process has
    a connection of its own: a queue that they shared would stay locked if one died while it wrote, and hold up all.

    Raises:
        TetradError: what a process met on loading its model.
    """

    def __init__(
        self, config: RunConfig, devices: Sequence[str], cases: Sequence[Case], guard: SignalGuard | None = None
    ) -> None:
        self.trace = Trace(keep=config.profile_file is not None)
        self.model: Mapping[str, Any] = {}
        self._guard = guard or SignalGuard()
        self._cases, self._waiting = list(cases), deque(cases)
        self._connections: dict[int, Connection] = {}
        self._processes: dict[int, BaseProcess] = {}
        self._running: set[int] = set()
        self._runtimes: dict[int, str] = {}
        self._load_error: TetradError | None = None
        self._pending: list[Outcome] = []
        # Exams of one subject that lack different sequences share its name.
        self._given: Counter[str] = Counter()
        try:
            self._start(config, devices)
            self._await_models()
        except BaseException:
            self.__exit__()
            raise
        self.runtime = "; ".join(self._runtimes.get(n, f"{d} did not start") for n, d in enumerate(devices))

    def __enter__(self) -> MultiDeviceRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self._terminate()
        for process in self._processes.values():
            process.join(10)
            if process.is_alive():
                process.kill()
        for connection in self._connections.values():
            connection.close()

    def __iter__(self) -> Iterator[Outcome]:
        while self._running:
            self._receive()
            yield from self._give()
        yield from self._give()
        for subject in (Counter(case.subject for case in self._cases) - self._given).elements():
            yield Outcome(subject, "failed", error="its process died (out of memory?); run it again alone.")

    def drain(self) -> Iterator[Outcome]:
        """Tell the processes to end; give the outcomes of what they had begun to write."""
        self._terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._running and time.monotonic() < deadline:
            self._receive()
        yield from self._give()

    def _start(self, config: RunConfig, devices: Sequence[str]) -> None:
        context: Any = multiprocessing.get_context(START_METHOD)
        threads = max(1, (os.cpu_count() or 1) // len(devices))
        for number, device in enumerate(devices):
            self._connections[number], theirs = context.Pipe()
            level = logging.getLogger().getEffectiveLevel()
            arguments = (replace(config, runtime=replace(config.runtime, device=device)), threads, theirs, level)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            # Only the process holds that end now: when it dies, the connection ends.
            theirs.close()
            self._processes[number] = process
            self._running.add(number)

    def _await_models(self) -> None:
        while len(self._runtimes) < len(self._running):
            self._receive()
            if self._load_error is not None:
                raise self._load_error

    def _terminate(self) -> None:
        for number in self._running:
            self._processes[number].terminate()

    def _give(self) -> Iterator[Outcome]:
        while self._pending:
            outcome = self._pending[0]
            self._given[outcome.subject] += 1
            yield outcome
            self._pending.pop(0)

    def _receive(self) -> None:
        """Wait a moment for messages and handle them; a signal in between must not tear one."""
        with self._guard.shielded():
            ready = wait([self._connections[n] for n in self._running], _POLL_SECONDS)
            for number in [n for n in self._running if self._connections[n] in ready]:
                try:
                    self._handle(number, *self._connections[number].recv())
                except (EOFError, OSError):
                    self._lose(number)

    def _handle(self, number: int, kind: str, content: Any) -> None:
        if kind == "want":
            self._hand_out(number)
        elif kind == "ready":
            self.model, self._runtimes[number] = content
            log.info("Model %s: %s.", self.model["name"], self._runtimes[number])
        elif kind == "done":
            self._pending.append(content)
        elif kind == "broken":
            self._load_error = content
            self._running.discard(number)
        else:
            self.trace.add(content)
            self._running.discard(number)

    def _hand_out(self, number: int) -> None:
        self._connections[number].send(self._waiting[0] if self._waiting else None)
        # Ticked off only when it was sent: one that died after asking leaves it to the others.
        if self._waiting:
            self._waiting.popleft()

    def _lose(self, number: int) -> None:
        """Note that a process has died."""
        self._processes[number].join(_POLL_SECONDS)
        log.error("The process of device %d ended with code %s.", number, self._processes[number].exitcode)
        self._running.discard(number)
        self._runtimes.pop(number, None)


class _Parent:
    """Speak with the process that started this one; a signal waits for the end of a message."""

    def __init__(self, connection: Connection, guard: SignalGuard) -> None:
        self._connection, self._guard = connection, guard

    def tell(self, kind: str, content: object = None) -> None:
        with self._guard.shielded():
            self._connection.send((kind, content))

    def ask(self) -> Any:
        """Ask for the next subject; None where there are no more."""
        self.tell("want")
        return self._connection.recv()


def _serve(config: RunConfig, threads: int, connection: Connection, level: int) -> None:
    """Load a model in this process and take subjects until there are no more or SIGTERM comes."""
    import torch

    start_log(level)
    # Ctrl-C reaches all processes of a terminal; the first one decides and tells the others. It may also die.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(threads)
    guard = SignalGuard((signal.SIGTERM,))
    parent = _Parent(connection, guard)
    events: list[dict[str, Any]] = []
    try:
        with guard.installed():
            processor = open_processor(config)
            parent.tell("ready", (processor.model_record, processor.runtime))
            _run_all(processor, parent, threads, guard)
            events = processor.trace.events()
    except Interrupted:
        pass
    except TetradError as error:
        parent.tell("broken", error)
        return
    except Exception as error:
        log.debug("", exc_info=True)
        reason = f"the model could not be loaded on {config.runtime.device} ({type(error).__name__}: {error})."
        parent.tell("broken", DeviceError(reason))
        return
    parent.tell("end", events)


def _run_all(processor: SubjectProcessor[Any, Any], parent: _Parent, threads: int, guard: SignalGuard) -> None:
    """Tell the parent of every outcome; on SIGTERM of those that were begun to be written."""
    with PrefetchingRunner(processor, iter(parent.ask, None), threads) as runner:
        try:
            for outcome in runner:
                parent.tell("done", outcome)
        except Interrupted:
            with guard.shielded():
                for outcome in runner.drain():
                    parent.tell("done", outcome)


def _follow_parent() -> None:
    """End this process when the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
