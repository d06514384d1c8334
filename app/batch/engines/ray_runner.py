"""Run subjects on the workers of a Ray cluster, and do elsewhere what a dead worker or machine had begun."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from app import __version__
from app.batch.engines.assignments import Assignments, Task
from app.batch.engines.placement import Place, choose_places, names_devices, places_of
from app.batch.engines.ray_session import import_ray, nodes_of, ray_session
from app.batch.engines.shared_folders import PATIENCE_SECONDS, await_outputs
from app.batch.engines.subject_worker import Report, SubjectWorker, WorkerDescription, most_calls
from app.batch.outcomes import Outcome
from app.batch.tracing import Trace
from app.core.config import RunConfig
from app.core.errors import DeviceError, TetradError, UsageError, WeightsError
from app.core.signals import SignalGuard
from app.core.startup import SPIN_COUNT, TUNABLES
from app.data.cases import Case

log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.5
#: How long workers that were told to end may take over what they have begun.
_GRACE_SECONDS: Final = 60.0
#: How long a run waits for a worker where it has none.
_PATIENCE_SECONDS: Final = 600.0
#: How often a worker is started where each dies while it loads its model.
_MOST_STARTS: Final = 3


@dataclass(eq=False)
class _Worker:
    """Follow one worker.

    Attributes:
        description: None until its model is loaded.
        busy: the subjects that it has.
        starts: how often a worker was started in this place since one was ready.
    """

    actor: Any
    place: Place
    description: WorkerDescription | None = None
    busy: list[Task] = field(default_factory=list)
    starts: int = 1


class RayRunner:
    """Give every subject's outcome, as `PrefetchingRunner` does, with workers under Ray.

    A worker that dies is started again where there is room, and its subjects are done elsewhere (`Assignments`).

    Raises:
        UsageError: Ray is not installed, or the options contradict each other.
        DeviceError: there is no such cluster, or no room in it.
        TetradError: what a worker met on loading its model.
    """

    def __init__(self, config: RunConfig, devices: Sequence[str], cases: Sequence[Case], guard: SignalGuard) -> None:
        self.trace = Trace(keep=config.profile_file is not None)
        self.model: Mapping[str, Any] = {}
        self._config, self._guard = config, guard
        purpose = "--engine ray" if config.cluster.engine == "ray" else f"--device {config.runtime.device}"
        self._ray = import_ray(purpose, own=config.cluster.ray_address is None)
        self._assignments = Assignments(cases)
        self._workers: list[_Worker] = []
        self._tasks: dict[Any, tuple[_Worker, Task]] = {}
        self._loading: dict[Any, _Worker] = {}
        self._runtimes: dict[_Worker, str] = {}
        self._pending: list[Outcome] = []
        self._stack = contextlib.ExitStack()
        try:
            self._open(devices, len(cases))
        except BaseException:
            self.__exit__()
            raise

    @property
    def runtime(self) -> str:
        """Say what the workers run on, and why."""
        counts = Counter(self._runtimes.values())
        return "; ".join(f"{count} x {text}" if count > 1 else text for text, count in counts.items())

    def __enter__(self) -> RayRunner:
        return self

    def __exit__(self, *_: object) -> None:
        # Ray is ended whole: a signal in between would leave processes behind.
        with self._guard.shielded():
            for worker in self._workers:
                with contextlib.suppress(Exception):
                    self._ray.kill(worker.actor)
            self._stack.close()

    def __iter__(self) -> Iterator[Outcome]:
        idle_since = time.monotonic()
        while self._assignments.left or self._tasks:
            self._hand_out()
            self._receive()
            yield from self._give()
            if self._tasks:
                idle_since = time.monotonic()
            elif not self._loading or time.monotonic() - idle_since > _PATIENCE_SECONDS:
                self._give_up_if_alone()
        yield from self._give()

    def drain(self) -> Iterator[Outcome]:
        """Tell the workers to begin nothing more; give the outcomes of what they had begun to write."""
        self._assignments.ended = True
        for worker in self._workers:
            worker.actor.end.remote()
        deadline = time.monotonic() + _GRACE_SECONDS
        while self._tasks and time.monotonic() < deadline:
            self._receive()
        yield from self._give()

    # ------------------------------------------------------------ workers

    def _open(self, devices: Sequence[str], cases: int) -> None:
        """Start the workers; wait for the first model, or for all where the user named the devices."""
        config, options = self._config, self._config.cluster
        named = len(devices) > 1 or names_devices(config.runtime.device)
        if named and options.ray_address is not None:
            raise UsageError(
                f"device {config.runtime.device!r} is of this machine; with --ray-address use cuda or cpu."
            )
        places = places_of(devices, os.cpu_count() or 1, options.worker_cores) if named else None
        cores = None if places is None else sum(place.cores for place in places)
        self._stack.enter_context(ray_session(self._ray, options.ray_address, cores))
        places = choose_places(nodes_of(self._ray), config) if places is None else places
        for place in places[: max(1, cases)]:
            self._start(place)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while self._loading and (named or not self.model):
            self._receive(strict=True)
            if time.monotonic() > deadline:
                raise DeviceError("no worker was started for ten minutes; is the Ray cluster busy with other work?")

    def _start(self, place: Place, starts: int = 1) -> None:
        environment = {"GLIBC_TUNABLES": TUNABLES, "GOMP_SPINCOUNT": SPIN_COUNT, "OMP_NUM_THREADS": str(place.cores)}
        actor = (
            self._ray.remote(SubjectWorker)
            .options(
                num_cpus=place.cores, num_gpus=place.gpus, max_concurrency=most_calls(self._config),
                runtime_env={"env_vars": environment},
            )
            .remote(self._config, place, logging.getLogger().getEffectiveLevel())
        )  # fmt: skip
        worker = _Worker(actor, place, starts=starts)
        self._workers.append(worker)
        # It waits for room, if there is none yet.
        self._loading[actor.load.remote()] = worker

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        self._ray.kill(worker.actor)

    def _give_up_if_alone(self) -> None:
        """Fail the rest where nobody is left to do it."""
        if any(worker.description for worker in self._workers):
            return
        log.error("No worker is left.")
        self._pending.extend(self._assignments.give_up())

    # ------------------------------------------------------------ subjects

    def _hand_out(self) -> None:
        """Give every worker what it may have, in turns."""
        with self._guard.shielded():
            ready = [worker for worker in self._workers if worker.description is not None]
            while ready:
                ready = [worker for worker in ready if self._hand_one(worker)]

    def _hand_one(self, worker: _Worker) -> bool:
        assert worker.description is not None
        task = self._assignments.next_for(worker.busy, worker.description.depth)
        if task is None:
            return False
        worker.busy.append(task)
        self._tasks[worker.actor.complete.remote(task.case)] = worker, task
        return True

    def _receive(self, strict: bool = False) -> None:
        """Wait a moment for answers and handle them; a signal in between must not tear one.

        Args:
            strict: a worker that cannot load its model ends the run.
        """
        with self._guard.shielded():
            waited_for = [*self._tasks, *self._loading]
            if not waited_for:
                time.sleep(_POLL_SECONDS)
                return
            self._ray.wait(waited_for, timeout=_POLL_SECONDS)
            ready, _ = self._ray.wait(waited_for, num_returns=len(waited_for), timeout=0)
            for reference in ready:
                if reference in self._loading:
                    self._take_loaded(reference, strict)
                else:
                    self._take_report(reference)

    def _take_loaded(self, reference: Any, strict: bool) -> None:
        worker = self._loading.pop(reference)
        answer: WorkerDescription | TetradError
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            if worker.starts < _MOST_STARTS:
                self._drop(worker)
                self._start(worker.place, worker.starts + 1)
                return
            reason = f"a worker could not be started ({_last_line(error)})"
            answer = DeviceError(f"{reason}; every node needs the same Tetrad, and memory for a model.")
        fault = answer if isinstance(answer, TetradError) else self._unlike(answer)
        if isinstance(answer, WorkerDescription) and fault is None:
            self._welcome(worker, answer)
        elif strict and fault is not None:
            raise fault
        else:
            log.error("A worker is left out: %s", fault)
            self._drop(worker)

    def _unlike(self, description: WorkerDescription) -> TetradError | None:
        """Compare a worker with the first one: outputs of one run have one origin."""
        if description.version != __version__:
            versions = f"{description.version}, this is {__version__}"
            return DeviceError(f"{description.node} has Tetrad {versions}; install the same on every node.")
        if self.model and description.model != self.model:
            return WeightsError(f"{description.node} has other weights than the first worker; use the same --weights.")
        return None

    def _welcome(self, worker: _Worker, description: WorkerDescription) -> None:
        worker.description = description
        self.model = self.model or description.model
        self._runtimes[worker] = description.runtime
        log.info("Model %s: %s.", description.model["name"], description.runtime)

    def _take_report(self, reference: Any) -> None:
        worker, task = self._tasks.pop(reference)
        worker.busy.remove(task)
        try:
            report: Report = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError:
            # A defect of the worker itself; its process lives.
            log.debug("%s", task.case.subject, exc_info=True)
            self._lose(task)
            return
        except self._ray.exceptions.RayError as error:
            self._lose(task)
            if worker in self._workers:
                assert worker.description is not None
                place = f"process {worker.description.process} on {worker.description.node}"
                log.error("A worker died (%s: %s); its subjects are done elsewhere.", place, _last_line(error))
                self._drop(worker)
                self._start(worker.place)
            return
        for message in report.messages:
            logging.getLogger(message.name).log(message.level, "%s", message.text)
        self.trace.add(list(report.events))
        if report.outcome is None:
            return
        if await_outputs(report.outcome, PATIENCE_SECONDS if worker in self._workers else 0):
            self._pending.append(report.outcome)
        else:
            self._distrust(worker, task)

    def _distrust(self, worker: _Worker, task: Task) -> None:
        """Leave out a worker whose outputs are not to be seen here."""
        self._lose(task)
        if worker in self._workers:
            assert worker.description is not None
            node, folder = worker.description.node, self._config.output_dir
            log.error("A worker is left out: %s does not share %s with this machine; mount it there.", node, folder)
            self._drop(worker)

    def _lose(self, task: Task) -> None:
        if self._assignments.ended:
            return
        outcome = self._assignments.lose(task)
        if outcome is not None:
            self._pending.append(outcome)

    def _give(self) -> Iterator[Outcome]:
        while self._pending:
            # Ticked off only when it was taken: a signal in between must not lose it.
            yield self._pending[0]
            self._pending.pop(0)


def _last_line(error: Exception) -> str:
    """Take what matters of an error of Ray, which may hold a whole traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "Error" in line), lines[0] if lines else type(error).__name__)[
        :200
    ]
