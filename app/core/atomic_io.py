"""Write files whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from app.core.errors import OutputError

#: What a user can do about an error of the system.
_ADVICE = {errno.ENOSPC: "free space", errno.EDQUOT: "free space", errno.EISDIR: "move the folder of that name away"}


def save_bytes(content: bytes, path: Path) -> None:
    """Write a file whole or not at all, without another name in its folder.

    On Linux the bytes go to a file without a name, which is linked into place when complete. So even a killed process
    leaves nothing behind. An existing file is replaced in one step, by way of a hidden neighbour. File systems without
    unnamed files are served the same way.

    Raises:
        OutputError: the disk is full, the folder is not writable or went away.
    """
    try:
        if not _write_unnamed(content, path):
            _write_and_rename(content, path)
    except OSError as error:
        raise OutputError(
            f"{path} could not be written ({error.strerror or error}) and nothing of it was kept; "
            f"{_ADVICE.get(error.errno or 0, 'make its folder writable')} and run again."
        ) from None


def save_together(contents: Mapping[Path, bytes]) -> None:
    """Replace several files in order, after all have been written.

    A full disk changes none of them.

    Raises:
        OutputError: as `save_bytes`; every file is then as it was.
    """
    staged = {path: _neighbour(path) for path in contents}
    try:
        for path, content in contents.items():
            _write(content, staged[path])
        for path, temporary in staged.items():
            temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{next(iter(contents)).parent} could not be written to ({error.strerror or error}); "
            f"{_ADVICE.get(error.errno or 0, 'make it writable')} and run again."
        ) from None
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)


def _write_unnamed(content: bytes, path: Path) -> bool:
    """Write through an unnamed file; return False where the file system has none."""
    flag = getattr(os, "O_TMPFILE", None)
    if flag is None:
        return False
    try:
        handle = os.open(path.parent, flag | os.O_WRONLY, 0o666)
    except OSError as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        return False
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
        source = f"/proc/self/fd/{stream.fileno()}"
        if not os.path.exists(source):
            return False
        # A link cannot replace a name: where there is one, the old content stays until the new one takes its place.
        target = _neighbour(path) if path.exists() else path
        try:
            os.link(source, target, follow_symlinks=True)
        except OSError:
            return False
        if target != path:
            try:
                target.replace(path)
            finally:
                target.unlink(missing_ok=True)
    return True


def _neighbour(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def _write_and_rename(content: bytes, path: Path) -> None:
    temporary = _neighbour(path)
    try:
        _write(content, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(content: bytes, path: Path) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
