"""Complete the studies that a DICOM node receives, and send what was made to another one.

All that is known of a study stands in the spool: a node that is killed goes on where it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.batch.clinic.results import Places, send_result
from app.batch.clinic.spool import Spool, SpooledStudy, StudyState
from app.core.errors import NothingToDo, TetradError
from app.core.signals import Interrupted
from app.dicom.destination import Destination, SendError

log = logging.getLogger(__name__)

#: Seconds before a study is sent again; twice as many each time, up to the second.
_FIRST_PAUSE: Final = 30.0
_LONGEST_PAUSE: Final = 900.0
#: How often a study may end the process before it is left alone.
_MOST_DEATHS: Final = 3
_HOUR: Final = 3600.0

#: Completes the study of a folder into another one.
Complete = Callable[[Path, Path], Places]


@dataclass(frozen=True)
class Patience:
    """Say how long a node waits.

    Attributes:
        quiet: seconds without a further image after which a study is taken for whole.
        keep: hours after its last image that a study stays which could not be completed or sent.
    """

    quiet: float = 30.0
    keep: float = 24.0


class Node:
    """Take the studies of a spool one step on at a time.

    Args:
        complete: raises `NothingToDo` for an exam that lacks nothing, and a `TetradError` for one that is refused.
    """

    def __init__(self, spool: Spool, complete: Complete, forward: Destination, patience: Patience) -> None:
        self._spool, self._complete, self._forward, self._patience = spool, complete, forward, patience
        #: Seconds of the clock before which a study is left alone, beside what its own state says.
        self._paused: dict[str, float] = {}

    def work(self) -> None:
        """Do with each study what is due now."""
        for study in self._spool.studies():
            try:
                if time.time() >= self._paused.get(study.name, 0.0):
                    self._advance(study, time.time())
            except (OSError, TetradError) as error:
                # A full disk, on which not even the next try can be noted; the others may need none.
                log.error("Study %s: %s", study.name, error)
                self._paused[study.name] = time.time() + _FIRST_PAUSE

    def _advance(self, study: SpooledStudy, now: float) -> None:
        received, images, state = study.received(), study.fingerprint(), study.state()
        if not received:
            self._spool.remove(study, images)
            return
        # A clock that was put back must not make it wait for hours.
        if abs(now - received) < self._patience.quiet:
            return
        if state is None or state.images != images or state.status == "begun":
            self._complete_study(study, images, state, now)
        elif state.status == "made" and now >= state.due:
            self._send(study, state, now)
        elif now - received >= self._patience.keep * _HOUR and self._spool.remove(study, images):
            log.error("Study %s: removed, %g hours after its last image.", study.name, self._patience.keep)

    # ------------------------------------------------------------ complete

    def _complete_study(self, study: SpooledStudy, images: str, before: StudyState | None, now: float) -> None:
        deaths = before.tries if before is not None and before.images == images else 0
        if deaths >= _MOST_DEATHS:
            self._refuse(study, images, f"it ended the process {deaths} times; look at it by `clinic`.")
            return
        study.note(StudyState(images, "begun", deaths + 1))
        log.info("Study %s: %d images, begun.", study.name, len(list(study.images.glob("*.dcm"))))
        try:
            places = self._complete(study.images, study.result)
        except Interrupted:
            # Told to end: no fault of the study's.
            study.note(StudyState(images, "begun", deaths))
            raise
        except NothingToDo as error:
            log.info("Study %s: %s", study.name, error)
            self._spool.remove(study, images)
        except TetradError as error:
            self._refuse(study, images, str(error))
        except Exception as error:
            log.debug("", exc_info=True)
            self._refuse(study, images, f"unexpected {type(error).__name__}: {error}; please report it.")
        else:
            state = StudyState(images, "made", stem=places.stem)
            study.note(state)
            # What came meanwhile may be the very sequence that lacked.
            if study.fingerprint() == images:
                self._send(study, state, now)

    def _refuse(self, study: SpooledStudy, images: str, reason: str) -> None:
        log.error("Study %s was not completed: %s", study.name, reason)
        study.note(StudyState(images, "refused"))

    # ------------------------------------------------------------ send

    def _send(self, study: SpooledStudy, state: StudyState, now: float) -> None:
        try:
            send_result(Places(study.result, state.stem), self._forward, attempts=1)
        except TetradError as error:
            self._wait_or_give_up(study, state, now, error)
        except Exception as error:
            log.debug("", exc_info=True)
            unexpected = SendError(f"unexpected {type(error).__name__}: {error}; please report it.")
            self._wait_or_give_up(study, state, now, unexpected)
        else:
            log.info("Study %s: sent to %s.", study.name, self._forward)
            self._spool.remove(study, state.images)

    def _wait_or_give_up(self, study: SpooledStudy, state: StudyState, now: float, error: TetradError) -> None:
        pause = min(_FIRST_PAUSE * 2**state.tries, _LONGEST_PAUSE)
        if now + pause - study.received() < self._patience.keep * _HOUR:
            log.warning("Study %s: %s Tried again in %d s.", study.name, error, pause)
            study.postpone(now + pause)
            return
        log.error("Study %s: given up after %d tries; its result is removed. %s", study.name, state.tries + 1, error)
        self._spool.remove(study, state.images)
