"""Complete subjects as a worker does: with a model of its own, several at once, each stage in its turn."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

from app import __version__
from app.batch.engines.placement import Place
from app.batch.engines.shared_folders import check_folders
from app.batch.outcomes import Outcome
from app.batch.prefetch import MAX_READERS, WRITE_BEHIND, choose_readers
from app.batch.processors.opening import open_processor
from app.batch.processors.subject_processor import SubjectProcessor
from app.core.config import RunConfig
from app.core.errors import DeviceError, TetradError
from app.data.cases import Case

log = logging.getLogger(__name__)

#: Most messages that wait for the next report.
_MOST_MESSAGES: Final = 1000


@dataclass(frozen=True)
class Message:
    """Hold one line of a worker's log for the log of the run."""

    name: str
    level: int
    text: str


@dataclass(frozen=True)
class WorkerDescription:
    """Say what a worker is, once its model is loaded.

    Attributes:
        version: of Tetrad.
        node, process: where it is, for messages.
        model, runtime: as the run record names them.
        depth: how many subjects it may have at a time.
    """

    version: str
    node: str
    process: int
    model: Mapping[str, Any]
    runtime: str
    depth: int


@dataclass(frozen=True)
class Report:
    """Hold what a worker sends back: never a volume.

    Attributes:
        outcome: None for a subject that was not begun when the run ended.
        events: spans for the trace of the run.
    """

    outcome: Outcome | None
    messages: tuple[Message, ...] = ()
    events: tuple[dict[str, Any], ...] = ()


def most_calls(config: RunConfig) -> int:
    """Count the threads that a worker needs: one per subject, and two for orders."""
    return depth_of(config, config.jobs or MAX_READERS) + 2


def depth_of(config: RunConfig, readers: int) -> int:
    """Count the subjects of one worker: read ahead, in the network, on their way to the disk."""
    # After a failure that ends the run, nothing later may appear in the output.
    return 1 if config.on_error == "stop" else readers + 1 + WRITE_BEHIND


class SubjectWorker:
    """Complete subjects with one model; `complete` is called from several threads.

    Making one costs nothing: `load` loads the model, so that its errors can be told.
    """

    def __init__(self, config: RunConfig, place: Place, level: int) -> None:
        self._config = replace(config, runtime=replace(config.runtime, device=place.device))
        self._cores = place.cores
        self._messages = _MessageKeeper()
        own = logging.getLogger("app")
        own.setLevel(level)
        own.addHandler(self._messages)
        self._ended = threading.Event()
        self._processor: SubjectProcessor[Any, Any] | None = None

    def load(self) -> WorkerDescription | TetradError:
        """Load the model; give the error instead where that fails."""
        import torch

        torch.set_num_threads(self._cores)
        try:
            check_folders(self._config)
            self._processor = processor = open_processor(self._config)
        except TetradError as error:
            return error
        except Exception as error:
            log.debug("", exc_info=True)
            device = self._config.runtime.device
            return DeviceError(f"the model could not be loaded on {device} ({type(error).__name__}: {error}).")
        readers = choose_readers(processor, self._cores)
        self._reader, self._writer = ThreadPoolExecutor(readers, "read"), ThreadPoolExecutor(WRITE_BEHIND, "write")
        # Threads of OpenMP belong to the thread that calls them: one for all subjects.
        self._network = ThreadPoolExecutor(1, "network")
        node, depth = os.uname().nodename, depth_of(self._config, readers)
        return WorkerDescription(__version__, node, os.getpid(), processor.model_record, processor.runtime, depth)

    def complete(self, case: Case) -> Report:
        """Take one subject through the three stages; other threads do the same meanwhile."""
        assert self._processor is not None, "a worker loads its model first"
        loaded = self._reader.submit(self._processor.read, case).result()
        computed = self._network.submit(self._compute, loaded).result()
        del loaded
        if computed is None:
            return self._report(None)
        return self._report(self._writer.submit(self._processor.write, computed).result())

    def end(self) -> None:
        """Begin nothing more; what is in the network or beyond is written."""
        self._ended.set()

    def _compute(self, loaded: Any) -> Any:
        """Run the network, unless the run has ended."""
        assert self._processor is not None
        return None if self._ended.is_set() else self._processor.compute(loaded)

    def _report(self, outcome: Outcome | None) -> Report:
        assert self._processor is not None
        return Report(outcome, self._messages.take(), tuple(self._processor.trace.take()))


class _MessageKeeper(logging.Handler):
    """Keep lines of the log until the next report takes them along."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: deque[Message] = deque(maxlen=_MOST_MESSAGES)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        self._kept.append(Message(record.name, record.levelno, record.getMessage()))

    def take(self) -> tuple[Message, ...]:
        """Give all that is kept, once."""
        messages = []
        while self._kept:
            messages.append(self._kept.popleft())
        return tuple(messages)
