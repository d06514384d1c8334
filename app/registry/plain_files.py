"""Open the files of a folder of weights: plain ones that lie in it, and nothing that a manifest may lead to instead."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Any, Final

#: Most bytes of a manifest, a lineage or another JSON file.
_MOST_JSON: Final = 2**26


class NotPlainError(OSError):
    """Report what is no plain file of the folder, in words that follow the file's name."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EINVAL, reason)


def is_inside(name: str) -> bool:
    """Tell whether a name leads to a place inside a folder: relative, without `..`, and printable."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and name.isprintable()


def open_plain(path: Path, folder: Path) -> io.BufferedReader:
    """Open a plain file of a folder of weights for reading.

    A device would never end and a pipe never begin; a link may lead to somebody else's files.

    Raises:
        NotPlainError: it is something else, or a link that leads out of the folder.
        OSError: it is not there or may not be read.
    """
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise NotPlainError("it is a link that leads out of its folder")
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise NotPlainError("it is no plain file")
    return os.fdopen(handle, "rb")


def read_json(path: Path, folder: Path) -> Any:
    """Read a JSON file of a folder of weights.

    Raises:
        OSError: as `open_plain`.
        ValueError: it is no JSON, nested too deeply or too large.
    """
    with open_plain(path, folder) as stream:
        content = stream.read(_MOST_JSON + 1)
    if len(content) > _MOST_JSON:
        raise ValueError(f"it has more than {_MOST_JSON} bytes")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
