"""DICOM nodes that tests talk to, on this machine alone."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from app.dicom.destination import Destination

logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)


@dataclass
class Pacs:
    """A node that keeps what it takes.

    Attributes:
        answer: gives the status of each image that comes.
    """

    answer: Callable[[Any], int] = lambda dataset: 0x0000
    images: list[Any] = field(default_factory=list)
    callers: list[str] = field(default_factory=list)
    address: Destination | None = None


@contextlib.contextmanager
def pacs(port: int = 0, knows: str | None = None, **options: Any) -> Iterator[Pacs]:
    """Run a node on localhost; `knows` is the one caller that it takes."""
    pytest.importorskip("pynetdicom", reason="pynetdicom is not installed")
    from pynetdicom import AE, AllStoragePresentationContexts, evt
    from pynetdicom.sop_class import Verification

    node = Pacs(**options)

    def take(event: Any) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        status = node.answer(dataset)
        if status == 0:
            node.images.append(dataset)
            node.callers.append(event.assoc.requestor.ae_title)
        return status

    entity = AE(ae_title="PACS")
    entity.supported_contexts = AllStoragePresentationContexts
    entity.add_supported_context(Verification)
    entity.require_called_aet = True
    if knows is not None:
        entity.require_calling_aet = [knows]
    server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, take)])
    try:
        node.address = Destination("PACS", "127.0.0.1", server.server_address[1])
        yield node
    finally:
        server.shutdown()


def free_port() -> int:
    """Find a port that nobody listens on."""
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
