"""Send images to another DICOM node by C-STORE, several times where that may help."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pydicom
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, MRImageStorage

from app.dicom.destination import OWN_TITLE, Destination, SendError, require_network

log = logging.getLogger(__name__)

#: Seconds that a connection, an answer and a silent line may take.
_CONNECT_SECONDS: Final = 10
_ANSWER_SECONDS: Final = 60
#: Seconds before the second attempt; twice as many before each next one.
_PAUSE: Final = 2.0
#: Statuses of C-STORE: done, and done with a change that the other node made.
_STORED: Final = frozenset({0x0000, 0xB000, 0xB006, 0xB007})
#: First hexadecimal digits of "out of resources".
_FULL: Final = 0xA7


class _PassingError(Exception):
    """Report what may be better in a moment."""


def send_files(
    files: Sequence[Path],
    to: Destination,
    *,
    title: str = OWN_TITLE,
    attempts: int = 3,
) -> None:
    """Send MR images; what was taken is not sent again by a later attempt.

    Args:
        title: of the sender.
        attempts: how often a node that does not answer, or has no room, is asked.

    Raises:
        SendError: the node cannot be reached, refuses the sender, or refuses an image.
        UsageError: pynetdicom is not installed.
    """
    require_network()
    waiting = list(files)
    for attempt in range(attempts):
        try:
            _send_all(waiting, to, title)
        except _PassingError as error:
            if attempt + 1 == attempts:
                raise SendError(_sentence(files, waiting, to, f"{error}{_times(attempts)}")) from None
            log.info("%s %s; asked again.", to, error)
            _wait(_PAUSE * 2**attempt)
        else:
            return


def _wait(seconds: float) -> None:
    time.sleep(seconds)


def _send_all(waiting: list[Path], to: Destination, title: str) -> None:
    """Send the images that wait, in one association; each that is taken leaves the list."""
    association = _associate(to, title)
    total = list(waiting)
    try:
        while waiting:
            _check_status(_store(association, waiting[0]), total, waiting, to)
            waiting.pop(0)
    finally:
        if association.is_established:
            association.release()


def _associate(to: Destination, title: str) -> Any:
    from pynetdicom import AE

    entity = AE(ae_title=title)
    entity.connection_timeout = _CONNECT_SECONDS
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = _ANSWER_SECONDS
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        entity.add_requested_context(MRImageStorage, syntax)
    association = entity.associate(to.host, to.port, ae_title=to.title)
    if association.is_established:
        return association
    if not association.is_rejected:
        raise _PassingError("cannot be reached")
    answer = association.acceptor.primitive
    reason = f"refuses {title} ({answer.reason_str})"
    if answer.result == 1:
        raise SendError(f"{to} {reason}; let it know this title, or check its own.")
    raise _PassingError(reason)


def _store(association: Any, file: Path) -> int:
    try:
        status = association.send_c_store(pydicom.dcmread(file))
    except (ValueError, RuntimeError) as error:
        # It takes no MR images, or the line broke.
        if association.is_established:
            raise SendError(f"{file} cannot be sent ({error}); let the node take MR images.") from None
        raise _PassingError("broke the line") from None
    if "Status" not in status:
        raise _PassingError("gave no answer")
    return int(status.Status)


def _check_status(status: int, files: Sequence[Path], waiting: Sequence[Path], to: Destination) -> None:
    if status in _STORED:
        return
    if status >> 8 == _FULL:
        raise _PassingError(f"has no room (0x{status:04X})")
    raise SendError(_sentence(files, waiting, to, f"refuses {waiting[0].name} (0x{status:04X})"))


def _times(attempts: int) -> str:
    return "" if attempts == 1 else f", asked {attempts} times"


def _sentence(files: Sequence[Path], waiting: Sequence[Path], to: Destination, reason: str) -> str:
    folder, taken = files[0].parent, len(files) - len(waiting)
    return f"{folder} was not sent whole: {to} {reason}; it took {taken} of {len(files)} images; run again to send it."
