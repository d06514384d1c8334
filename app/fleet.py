"""Several devices at once: a process with its own model for each, subjects handed out as they become free."""

from __future__ import annotations

import logging
import multiprocessing
import os
import queue
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from typing import Any

from app.cases import Case
from app.config import RunConfig
from app.errors import TetradError
from app.interrupts import Interrupted, Interrupts
from app.trace import Trace
from app.weights import read_manifest
from app.worker import Flow, Outcome, Worker, runtime_of

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.5


class Fleet:
    """What `Flow` is for one device: outcomes as they come, in any order.

    A process that dies takes only the subjects with it that it had begun; they are reported as failed.

    Raises:
        TetradError: what a process met on loading its model.
    """

    def __init__(self, config: RunConfig, devices: Sequence[str], cases: Sequence[Case]) -> None:
        self.trace = Trace(keep=config.profile_file is not None)
        entry = read_manifest(config.weights_dir).entry(config.model)
        self.model = {"name": entry.name, "sha256": entry.sha256}
        self._cases = list(cases)
        # Forked processes cannot use CUDA, and would share this one's threads and locks.
        context = multiprocessing.get_context("spawn")
        self._tasks: Any = context.Queue()
        self._results: Any = context.Queue()
        for case in self._cases:
            self._tasks.put(case)
        self._crew: dict[int, BaseProcess] = {}
        threads = max(1, (os.cpu_count() or 1) // len(devices))
        for number, device in enumerate(devices):
            self._tasks.put(None)
            own = replace(config, device=device)
            process = context.Process(
                target=_serve, args=(number, own, threads, self._tasks, self._results), daemon=True
            )
            process.start()
            self._crew[number] = process
        self._running = set(self._crew)
        self._pending: list[Outcome] = []
        self._given: set[str] = set()
        self.runtime = "; ".join(self._wait_until_ready(devices))

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        for process in self._crew.values():
            process.join(10)
            if process.is_alive():
                process.kill()
        for channel in (self._tasks, self._results):
            channel.cancel_join_thread()
            channel.close()

    def __iter__(self) -> Iterator[Outcome]:
        while self._running:
            yield from self._receive()
        for case in self._cases:
            if case.subject not in self._given:
                yield Outcome(case.subject, "failed", error="its process died (out of memory?); run it again alone.")

    def rest(self) -> Iterator[Outcome]:
        """Tells the processes to end; the outcomes of what they had computed."""
        self._stop()
        while self._running:
            yield from self._receive()

    def _stop(self) -> None:
        for number in self._running:
            self._crew[number].terminate()

    def _wait_until_ready(self, devices: Sequence[str]) -> list[str]:
        names: dict[int, str] = {}
        while len(names) < len(devices) and len(self._running) == len(devices):
            for number, kind, content in self._messages():
                if kind == "broken":
                    self.__exit__()
                    raise content
                if kind == "ready":
                    names[number] = content
                    log.info("Model %s: %s.", self.model["name"], content)
                elif kind == "done":
                    self._pending.append(content)
        return [names.get(n, f"{d} did not start") for n, d in enumerate(devices)]

    def _receive(self) -> Iterator[Outcome]:
        for _, kind, content in self._messages():
            if kind == "done":
                self._pending.append(content)
        while self._pending:
            outcome = self._pending.pop(0)
            self._given.add(outcome.subject)
            yield outcome

    def _messages(self) -> Iterator[tuple[int, str, Any]]:
        """What has come; ends of processes are noted."""
        try:
            message = self._results.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            for number in [n for n in self._running if not self._crew[n].is_alive()]:
                log.error("The process of device %d ended with code %s.", number, self._crew[number].exitcode)
                self._running.discard(number)
            return
        if message[1] == "end":
            self.trace.add(message[2])
            self._running.discard(message[0])
        yield message


def _serve(number: int, config: RunConfig, threads: int, tasks: Any, results: Any) -> None:
    """One process: its model, and subjects until there are no more or SIGTERM comes."""
    import torch

    # Ctrl-C reaches all processes of a terminal; the first one decides and tells the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    interrupts = Interrupts((signal.SIGTERM,))
    try:
        with interrupts.installed():
            worker = Worker(config)
            results.put((number, "ready", runtime_of(worker)))
            with Flow(worker, iter(tasks.get, None)) as flow:
                try:
                    for outcome in flow:
                        results.put((number, "done", outcome))
                except Interrupted:
                    with interrupts.shielded():
                        for outcome in flow.rest():
                            results.put((number, "done", outcome))
        results.put((number, "end", worker.trace.events()))
    except TetradError as error:
        results.put((number, "broken", error))
    except Interrupted:
        results.put((number, "end", []))
