"""Many subjects through one worker: the next are read and the last are written while the network runs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any, cast

from app.batch.case_processor import CaseProcessor, Job, runtime_of
from app.batch.outcomes import Outcome
from app.data.cases import Case
from app.registry.manifest import identity_record

#: Subjects that wait, computed, for the disk.
WRITE_BEHIND = 2
#: Most threads that decode for one GPU; each holds one subject (about 150 MB).
MAX_READERS = 8


def choose_readers(worker: CaseProcessor, cores: int) -> int:
    """Threads that decode: as asked, else one per 16 cores beside a processor's network, half the cores by a GPU's.

    Two at least, so that a slow file holds back nobody; but one where a failure ends the run, which keeps the order.

    Args:
        cores: those that this worker has for itself.
    """
    if worker.config.jobs is not None:
        return worker.config.jobs
    if worker.config.on_error == "stop":
        return 1
    runtime = worker.synthesizer.model.runtime
    on_gpu = runtime is not None and runtime.device.startswith("cuda")
    return max(2, min(MAX_READERS, cores // (2 if on_gpu else 16)))


class PrefetchingRunner:
    """Every subject's outcome; the next are read and the last are written while the network runs.

    What is read first is computed first: with two readers, as by default, a slow file holds back nobody. As many
    subjects as there are readers wait to be computed and `WRITE_BEHIND` to be written, so memory does not grow with
    their number.
    What was computed when the iteration ends early is written all the same; `rest` gives its outcomes.
    """

    def __init__(self, worker: CaseProcessor, cases: Iterable[Case], cores: int | None = None) -> None:
        self.trace, self.runtime = worker.trace, runtime_of(worker)
        model = worker.synthesizer.model
        self.model = identity_record(model.identity, {m: s.identity for m, s in model.specialists.items()})
        self._worker, self._cases = worker, cases
        self._readers = choose_readers(worker, cores or os.cpu_count() or 1)
        self._reader, self._writer = ThreadPoolExecutor(self._readers, "read"), ThreadPoolExecutor(2, "write")
        self._ahead: deque[Future[Job]] = deque()
        self._behind: deque[Future[Outcome]] = deque()
        # After a failure that ends the run, nothing later may appear in the output.
        self._patience = WRITE_BEHIND if worker.config.on_error != "stop" else 0

    def __enter__(self) -> PrefetchingRunner:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.shutdown(cancel_futures=True)
        self._writer.shutdown()

    def __iter__(self) -> Iterator[Outcome]:
        waiting = iter(self._cases)
        self._ahead.extend(self._reader.submit(self._worker.read, c) for c in islice(waiting, 1 + self._readers))
        while self._ahead:
            while (ready := next((f for f in self._ahead if f.done()), None)) is None:
                # What is written meanwhile is reported, however long the next subject takes to be read.
                # (Without a name for them: a future holds its subject, and none may outlive its turn.)
                wait(cast(list[Future[Any]], [*self._ahead, *islice(self._behind, 1)]), return_when=FIRST_COMPLETED)
                yield from self._give_up_to(WRITE_BEHIND)
            self._ahead.remove(ready)
            job = ready.result()
            self._ahead.extend(self._reader.submit(self._worker.read, c) for c in islice(waiting, 1))
            self._worker.compute(job)
            self._behind.append(self._writer.submit(self._worker.write, job))
            # What the reader and the writer need no more of this subject must not wait for the next one.
            del job, ready
            yield from self._give_up_to(self._patience)
        yield from self.rest()

    def rest(self) -> Iterator[Outcome]:
        """The outcomes of what was computed and not yet given."""
        yield from self._give_up_to(0)

    def _give_up_to(self, patience: int) -> Iterator[Outcome]:
        """The outcomes that are there, oldest first; waits until no more than `patience` are open."""
        while self._behind and (self._behind[0].done() or len(self._behind) > patience):
            # Ticked off only when it was taken: a signal in between must not lose it.
            yield self._behind[0].result()
            self._behind.popleft()
