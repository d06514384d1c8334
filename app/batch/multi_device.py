"""Several devices at once: a process with its own model for each, subjects handed out as they become free."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from app.batch.case_processor import CaseProcessor, runtime_of
from app.batch.outcomes import Outcome
from app.batch.prefetch import PrefetchingRunner
from app.batch.tracing import Trace
from app.core.config import RunConfig
from app.core.errors import DeviceError, TetradError
from app.core.signals import Interrupted, SignalGuard
from app.data.cases import Case
from app.registry.manifest import identity_record, read_manifest

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
#: How long processes that were told to end may take over what they have begun.
_GRACE_SECONDS = 60.0


class MultiDeviceRunner:
    """What `PrefetchingRunner` is for one device: outcomes as they come, in any order.

    A process that dies takes only the subjects with it that it had begun; they are reported as failed. Each has a line
    of its own: a queue that they shared would stay locked if one died while it wrote, and hold up all.

    Raises:
        TetradError: what a process met on loading its model.
    """

    def __init__(
        self, config: RunConfig, devices: Sequence[str], cases: Sequence[Case], interrupts: SignalGuard | None = None
    ) -> None:
        self._interrupts = interrupts or SignalGuard()
        self.trace = Trace(keep=config.profile_file is not None)
        manifest = read_manifest(config.model.weights_dir)
        entry = manifest.entry(config.model.model)
        specialists = manifest.specialists_of(entry) if config.model.specialists else {}
        self.model = identity_record(entry.identity, {m: e.identity for m, e in specialists.items()})
        self._cases = list(cases)
        # Forked processes cannot use CUDA, and would share this one's threads and locks.
        context = multiprocessing.get_context("spawn")
        self._waiting = deque(self._cases)
        self._lines: dict[int, Connection] = {}
        self._crew: dict[int, BaseProcess] = {}
        self._running: set[int] = set()
        self._pending: list[Outcome] = []
        # Exams of one subject that lack different sequences share its name.
        self._given: Counter[str] = Counter()
        self._names: dict[int, str] = {}
        self._broken: TetradError | None = None
        threads = max(1, (os.cpu_count() or 1) // len(devices))
        try:
            for number, device in enumerate(devices):
                self._lines[number], theirs = context.Pipe()
                arguments = (replace(config, runtime=replace(config.runtime, device=device)), threads, theirs)
                process = context.Process(target=_serve, args=arguments, daemon=True)
                process.start()
                # Only the process holds that end now: when it dies, the line ends.
                theirs.close()
                self._crew[number] = process
                self._running.add(number)
            while len(self._names) < len(self._running):
                self._take()
                if self._broken is not None:
                    raise self._broken
        except BaseException:
            self.__exit__()
            raise
        self.runtime = "; ".join(self._names.get(n, f"{d} did not start") for n, d in enumerate(devices))

    def __enter__(self) -> MultiDeviceRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        for process in self._crew.values():
            process.join(10)
            if process.is_alive():
                process.kill()
        for line in self._lines.values():
            line.close()

    def __iter__(self) -> Iterator[Outcome]:
        while self._running:
            self._take()
            yield from self._give()
        yield from self._give()
        for subject in (Counter(case.subject for case in self._cases) - self._given).elements():
            yield Outcome(subject, "failed", error="its process died (out of memory?); run it again alone.")

    def rest(self) -> Iterator[Outcome]:
        """Tells the processes to end; the outcomes of what they had begun to write."""
        self._stop()
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._running and time.monotonic() < deadline:
            self._take()
        yield from self._give()

    def _stop(self) -> None:
        for number in self._running:
            self._crew[number].terminate()

    def _give(self) -> Iterator[Outcome]:
        while self._pending:
            outcome = self._pending[0]
            self._given[outcome.subject] += 1
            yield outcome
            self._pending.pop(0)

    def _take(self) -> None:
        """Waits a moment for messages and notes them; a signal in between must not tear one."""
        with self._interrupts.shielded():
            ready = wait([self._lines[n] for n in self._running], _POLL_SECONDS)
            for number in [n for n in self._running if self._lines[n] in ready]:
                try:
                    self._note(number, *self._lines[number].recv())
                except (EOFError, OSError):
                    self._lose(number)

    def _note(self, number: int, kind: str, content: Any) -> None:
        if kind == "want":
            self._lines[number].send(self._waiting[0] if self._waiting else None)
            # Ticked off only when it was sent: one that died after asking leaves it to the others.
            if self._waiting:
                self._waiting.popleft()
        elif kind == "ready":
            self._names[number] = content
            log.info("Model %s: %s.", self.model["name"], content)
        elif kind == "done":
            self._pending.append(content)
        elif kind == "broken":
            self._broken = content
            self._running.discard(number)
        else:
            self.trace.add(content)
            self._running.discard(number)

    def _lose(self, number: int) -> None:
        """Notes that a process has died."""
        self._crew[number].join(_POLL_SECONDS)
        log.error("The process of device %d ended with code %s.", number, self._crew[number].exitcode)
        self._running.discard(number)
        self._names.pop(number, None)


def _serve(config: RunConfig, threads: int, line: Connection) -> None:
    """One process: its model, and subjects until there are no more or SIGTERM comes."""
    import torch

    # Ctrl-C reaches all processes of a terminal; the first one decides and tells the others. It may also die.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(threads)
    interrupts = SignalGuard((signal.SIGTERM,))

    def tell(kind: str, content: object = None) -> None:
        with interrupts.shielded():
            line.send((kind, content))

    def ask() -> Any:
        tell("want")
        return line.recv()

    events: list[dict[str, Any]] = []
    try:
        with interrupts.installed():
            worker = CaseProcessor(config)
            tell("ready", runtime_of(worker))
            with PrefetchingRunner(worker, iter(ask, None), threads) as flow:
                try:
                    for outcome in flow:
                        tell("done", outcome)
                except Interrupted:
                    with interrupts.shielded():
                        for outcome in flow.rest():
                            tell("done", outcome)
            events = worker.trace.events()
    except Interrupted:
        pass
    except TetradError as error:
        tell("broken", error)
        return
    except (RuntimeError, OSError, MemoryError, ValueError, ImportError) as error:
        reason = f"the model could not be loaded on {config.runtime.device} ({type(error).__name__}: {error})."
        tell("broken", DeviceError(reason))
        return
    tell("end", events)


def _follow_parent() -> None:
    """Ends this process when the one that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
