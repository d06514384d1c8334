"""Receive MR images from other DICOM nodes by C-STORE, and answer their C-ECHO."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from pydicom.uid import EnhancedMRImageStorage, MRImageStorage

from app.core.errors import OutputError, UsageError
from app.dicom.destination import require_network

log = logging.getLogger(__name__)

#: Answers to C-STORE.
_STORED, _NO_ROOM, _NOT_UNDERSTOOD = 0x0000, 0xA700, 0xC000
#: Seconds after which a silent line is closed.
_SILENCE_SECONDS: Final = 60
#: Senders that are served at a time; others are asked to come back.
_MOST_SENDERS: Final = 10


@dataclass(frozen=True)
class Listener:
    """Say where a node listens, and to whom.

    Attributes:
        title: under which it is called; a caller that uses another is refused.
        allowed: titles of the callers that may send.
    """

    host: str
    port: int
    title: str
    allowed: tuple[str, ...]


@dataclass(frozen=True)
class ReceivedImage:
    """Hold one image as it came.

    Attributes:
        study, instance: StudyInstanceUID and SOPInstanceUID, as the sender wrote them.
        content: of a DICOM file.
    """

    study: str
    instance: str
    content: bytes


@contextmanager
def receiving(listener: Listener, store: Callable[[ReceivedImage], None]) -> Iterator[int]:
    """Listen while the context lasts; each sender has a thread of its own.

    Args:
        store: keeps an image for good, or raises `OutputError`; the sender gets its answer after that.

    Yields:
        The port, which the system chooses if `listener.port` is 0.

    Raises:
        UsageError: the address cannot be listened on, or pynetdicom is not installed.
    """
    require_network()
    from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, evt
    from pynetdicom.sop_class import Verification

    entity = AE(ae_title=listener.title)
    for kind in (MRImageStorage, EnhancedMRImageStorage):
        entity.add_supported_context(kind, ALL_TRANSFER_SYNTAXES)
    entity.add_supported_context(Verification)
    entity.require_called_aet = True
    entity.require_calling_aet = list(listener.allowed)
    entity.maximum_associations = _MOST_SENDERS
    entity.network_timeout = entity.acse_timeout = entity.dimse_timeout = _SILENCE_SECONDS
    handlers: list[Any] = [(evt.EVT_C_STORE, lambda event: _take(event, store)), (evt.EVT_REJECTED, _say_refusal)]
    try:
        server = entity.start_server((listener.host, listener.port), block=False, evt_handlers=handlers)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{listener.host}:{listener.port} cannot be listened on ({reason}); give another --host or --port."
        ) from None
    try:
        yield int(server.server_address[1])
    finally:
        entity.shutdown()


def _take(event: Any, store: Callable[[ReceivedImage], None]) -> int:
    """Keep one image; return the answer for its sender."""
    try:
        dataset = event.dataset
        image = ReceivedImage(
            str(dataset.StudyInstanceUID), str(event.request.AffectedSOPInstanceUID), event.encoded_dataset()
        )
        made_by_machine = str(dataset.get("SyntheticData", "")) == "YES"
    except Exception as error:  # noqa: BLE001 - whatever a sender sends must not end the node
        log.warning("An image of %s was refused, since it cannot be read (%s).", _caller(event), error)
        return _NOT_UNDERSTOOD
    if made_by_machine:
        # An archive may send back what it got; an input it can never be.
        log.info("A synthetic image of %s was passed over.", _caller(event))
        return _STORED
    try:
        store(image)
    except OutputError as error:
        log.error("An image of %s was not taken: %s", _caller(event), error)
        return _NO_ROOM
    return _STORED


def _say_refusal(event: Any) -> None:
    log.warning("%s was refused; --allow names who may send.", _caller(event))


def _caller(event: Any) -> str:
    requestor = event.assoc.requestor
    return f"{requestor.ae_title}@{requestor.address}"
