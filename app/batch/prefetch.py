"""Take many subjects through one processor: read the next and write the last while the network runs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, TypeAlias, cast

from app.batch.outcomes import Outcome
from app.batch.processors.subject_processor import SubjectProcessor
from app.data.cases import Case

#: Subjects that wait, computed, for the disk.
WRITE_BEHIND = 2
#: Most threads that decode for one GPU; each holds one subject (about 150 MB).
MAX_READERS = 8

#: Of any kind of subject; each processor knows its own.
_Processor: TypeAlias = "SubjectProcessor[Any, Any]"
_Reading: TypeAlias = "Future[Any]"


def choose_readers(processor: _Processor, cores: int) -> int:
    """Choose how many threads decode: as asked, else one per 16 cores, or half the cores by a GPU.

    Two at least, so that a slow file holds back nobody; but one where a failure ends the run, which keeps the order.

    Args:
        cores: those that this processor has for itself.
    """
    if processor.config.jobs is not None:
        return processor.config.jobs
    if processor.config.on_error == "stop":
        return 1
    return max(2, min(MAX_READERS, cores // (2 if processor.on_gpu else 16)))


class PrefetchingRunner:
    """Give every subject's outcome, with one model; read and write while the network runs.

    The subject that is read first is computed first: with two readers, as by default, a slow file holds back nobody.
    As many subjects as there are readers wait to be computed, and `WRITE_BEHIND` to be written. So memory does not
    grow with their number. Where the iteration ends early, `drain` gives the outcomes of what was computed.
    """

    def __init__(self, processor: _Processor, cases: Iterable[Case], cores: int | None = None) -> None:
        self.trace, self.runtime, self.model = processor.trace, processor.runtime, processor.model_record
        self._processor, self._cases = processor, cases
        self._readers = choose_readers(processor, cores or os.cpu_count() or 1)
        self._reader, self._writer = ThreadPoolExecutor(self._readers, "read"), ThreadPoolExecutor(2, "write")
        self._reading: deque[_Reading] = deque()
        self._writing: deque[Future[Outcome]] = deque()
        # After a failure that ends the run, nothing later may appear in the output.
        self._patience = WRITE_BEHIND if processor.config.on_error != "stop" else 0

    def __enter__(self) -> PrefetchingRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.shutdown(cancel_futures=True)
        self._writer.shutdown()

    def __iter__(self) -> Iterator[Outcome]:
        waiting = iter(self._cases)
        self._start_reading(waiting, 1 + self._readers)
        while self._reading:
            while (ready := next((f for f in self._reading if f.done()), None)) is None:
                # What is written meanwhile is reported, however long the next subject takes to be read.
                self._wait_for_any()
                yield from self._give_up_to(WRITE_BEHIND)
            self._reading.remove(ready)
            loaded = ready.result()
            self._start_reading(waiting, 1)
            self._writing.append(self._writer.submit(self._processor.write, self._processor.compute(loaded)))
            # What the reader and the writer need no more of this subject must not wait for the next one.
            del loaded, ready
            yield from self._give_up_to(self._patience)
        yield from self.drain()

    def drain(self) -> Iterator[Outcome]:
        """Give the outcomes of what was computed and not yet given."""
        yield from self._give_up_to(0)

    def _start_reading(self, waiting: Iterator[Case], count: int) -> None:
        self._reading.extend(self._reader.submit(self._processor.read, case) for case in islice(waiting, count))

    def _wait_for_any(self) -> None:
        # Without a name for the futures: one holds its subject, and none may outlive its turn.
        wait(cast("list[Future[Any]]", [*self._reading, *islice(self._writing, 1)]), return_when=FIRST_COMPLETED)

    def _give_up_to(self, patience: int) -> Iterator[Outcome]:
        """Give the outcomes that are there, oldest first, until no more than `patience` are open."""
        while self._writing and (self._writing[0].done() or len(self._writing) > patience):
            # Ticked off only when it was taken: a signal in between must not lose it.
            yield self._writing[0].result()
            self._writing.popleft()
