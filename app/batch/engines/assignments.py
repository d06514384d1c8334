"""Decide which subject a worker gets next, and what becomes of those whose worker died."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from app.batch.outcomes import Outcome
from app.data.cases import Case

#: How often a subject is tried before it is given up.
MOST_TRIES: Final = 2


@dataclass(frozen=True)
class Task:
    """Hold one subject that is handed out; two exams of one name have numbers of their own."""

    number: int
    case: Case


class Assignments:
    """Hand out every subject once, and those of a dead worker once more.

    A worker has several subjects at a time, so it is not known which one killed it. Those are tried again alone: a
    subject that fails has killed its worker by itself.

    Attributes:
        ended: nothing more is handed out.
    """

    def __init__(self, cases: Sequence[Case]) -> None:
        self._waiting = deque(Task(number, case) for number, case in enumerate(cases))
        self._suspects: deque[Task] = deque()
        self._deaths: Counter[int] = Counter()
        self.ended = False

    @property
    def left(self) -> int:
        """Count the subjects that nobody has."""
        return 0 if self.ended else len(self._waiting) + len(self._suspects)

    def next_for(self, busy: Sequence[Task], depth: int) -> Task | None:
        """Choose a subject for a worker; None where it should get none now.

        Args:
            busy: what the worker has already.
            depth: how many it may have.
        """
        if self.ended or len(busy) >= depth or any(self._deaths[task.number] for task in busy):
            return None
        if self._suspects and not busy:
            return self._suspects.popleft()
        return self._waiting.popleft() if self._waiting else None

    def lose(self, task: Task) -> Outcome | None:
        """Note that a worker died with a subject; give its outcome where that was the last try."""
        self._deaths[task.number] += 1
        if self._deaths[task.number] < MOST_TRIES:
            self._suspects.append(task)
            return None
        reason = "its worker died, and so did the second one (out of memory?); run it again alone."
        return Outcome(task.case.subject, "failed", error=reason)

    def give_up(self) -> list[Outcome]:
        """Fail all that nobody has, since nobody is left to do it."""
        tasks = [*self._suspects, *self._waiting]
        self._suspects.clear()
        self._waiting.clear()
        reason = "no worker was left to do it; see the messages above and run again."
        return [Outcome(task.case.subject, "failed", error=reason) for task in tasks]
