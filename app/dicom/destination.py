"""A DICOM node by its title and address, and the package that speaks to it. Importing this needs no package."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from typing import Final

from app.core.errors import CaseError, UsageError

#: The title under which Tetrad calls others.
OWN_TITLE: Final = "TETRAD"
_TITLE: Final = re.compile(r"[ !-\[\]-~]{1,16}")
_ADDRESS: Final = re.compile(r"(?P<title>[^@]+)@(?P<host>\[[0-9A-Fa-f:.]+\]|[^@:\s]+):(?P<port>\d{1,5})")
_MOST_PORT: Final = 65535


class SendError(CaseError):
    """Report images that another node did not take."""


@dataclass(frozen=True)
class Destination:
    """Name a DICOM node."""

    title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Read `AET@host:port`; an IPv6 address stands in brackets.

        Raises:
            UsageError: it is no such text.
        """
        match = _ADDRESS.fullmatch(text)
        if match is None or not 0 < int(match["port"]) <= _MOST_PORT:
            raise UsageError(f"{text!r} names no DICOM node; write AET@host:port, such as PACS@10.0.0.5:104.")
        return cls(check_title(match["title"]), match["host"].strip("[]"), int(match["port"]))

    def __str__(self) -> str:
        """Write it as it is given."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.title}@{host}:{self.port}"


def check_title(text: str) -> str:
    """Check an application entity's title.

    Raises:
        UsageError: it can be none.
    """
    title = text.strip()
    if not title or not _TITLE.fullmatch(title):
        raise UsageError(f"{text!r} can be no AE title; use 1 to 16 characters without backslash.")
    return title


def require_network() -> None:
    """Check that the package that speaks DICOM is installed.

    Raises:
        UsageError: it is not.
    """
    if importlib.util.find_spec("pynetdicom") is None:
        raise UsageError("DICOM cannot be sent or received without pynetdicom; run `pip install pynetdicom==3.0.4`.")
