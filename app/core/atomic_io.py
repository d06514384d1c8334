"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Final

from app.core.errors import OutputError

#: What a user can do about an error of the system.
_ADVICE = {
    errno.ENOSPC: "free space",
    errno.EDQUOT: "free space",
    errno.EISDIR: "move the folder of that name away",
    errno.ENAMETOOLONG: "shorten the subject's name",
}
#: Names of files that are not complete yet: short, since a complete one may have all 255 bytes of a name.
_PART: Final = re.compile(r"\.tetrad-[0-9a-f]{16}\.part")
#: The same of version 0.1.0, with the number of the process.
_OLD_PART: Final = re.compile(r"\..+\.(?:nii\.gz|json|html)\.(\d+)\.part")
#: Seconds after which an incomplete file is nobody's, where the file system has no locks that would tell.
_ABANDONED: Final = 3600.0
#: A file system without good locks may let another machine sweep away what is being written.
_ATTEMPTS: Final = 3


def save_bytes(content: bytes, path: Path, *, alone: bool = False) -> None:
    """Write a file whole or not at all.

    On Linux the bytes go to a file without a name, which is linked into place when complete. So even a killed process
    leaves nothing behind. An existing file is replaced in one step, by way of a hidden neighbour. File systems without
    unnamed files are served the same way; `sweep` removes what a killed process leaves there.

    Args:
        alone: do without the neighbour where the file system can, since others open all that a folder holds: an
            existing file is removed when the new one is complete, and only that takes its name.

    Raises:
        OutputError: the disk is full, the folder is not writable or went away.
    """
    try:
        if not _write_unnamed(content, path, alone):
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
    try:
        with contextlib.ExitStack() as stack:
            staged = {}
            for path, content in contents.items():
                staged[path], stream = stack.enter_context(_part_of(path))
                _write(content, stream)
            for path, temporary in staged.items():
                temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{next(iter(contents)).parent} could not be written to ({error.strerror or error}); "
            f"{_ADVICE.get(error.errno or 0, 'make it writable')} and run again."
        ) from None


def sweep(folder: Path) -> None:
    """Remove the incomplete files that killed processes left in a folder; those of living ones stay."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            old = _OLD_PART.fullmatch(entry.name)
            if _PART.fullmatch(entry.name) or (old is not None and not _is_process(int(old[1]))):
                with contextlib.suppress(OSError):
                    _remove_abandoned(Path(entry.path))


def _write_unnamed(content: bytes, path: Path, alone: bool) -> bool:
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
        _write(content, stream)
        source = f"/proc/self/fd/{stream.fileno()}"
        if not os.path.exists(source):
            return False
        # A link cannot replace a name: where there is one, the old content stays until the new one takes its place.
        target = path
        if alone:
            path.unlink(missing_ok=True)
        elif os.path.lexists(path):
            target = _neighbour(path)
            _lock(stream)
        try:
            # With a descriptor, `os.link` calls `linkat`, which alone follows the link that the source is.
            os.link(source, target, src_dir_fd=stream.fileno(), follow_symlinks=True)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise
            return False
        if target != path:
            try:
                target.replace(path)
            finally:
                target.unlink(missing_ok=True)
    return True


def _write_and_rename(content: bytes, path: Path) -> None:
    for attempt in range(_ATTEMPTS):
        with _part_of(path) as (temporary, stream):
            _write(content, stream)
            try:
                temporary.replace(path)
            except FileNotFoundError:
                if attempt + 1 == _ATTEMPTS or not path.parent.is_dir():
                    raise
            else:
                return


@contextlib.contextmanager
def _part_of(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Make a hidden, locked file beside a path, open for writing; it is gone at the end unless it was renamed."""
    temporary, stream = _new_part(path)
    try:
        with stream:
            yield temporary, stream
    finally:
        temporary.unlink(missing_ok=True)


def _new_part(path: Path) -> tuple[Path, BinaryIO]:
    while True:
        temporary = _neighbour(path)
        stream = temporary.open("xb")
        try:
            _lock(stream)
            # Between its making and its lock, another run may have swept it away.
            if os.path.exists(temporary):
                return temporary, stream
        except BaseException:
            stream.close()
            temporary.unlink(missing_ok=True)
            raise
        stream.close()


def _neighbour(path: Path) -> Path:
    return path.with_name(f".tetrad-{os.urandom(8).hex()}.part")


def _lock(stream: BinaryIO) -> None:
    """Show other processes that a file is being written, where the file system has locks."""
    with contextlib.suppress(OSError):
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _write(content: bytes, stream: BinaryIO) -> None:
    stream.write(content)
    stream.flush()
    os.fsync(stream.fileno())


def _remove_abandoned(path: Path) -> None:
    """Remove an incomplete file whose writer is gone: the system took its lock back.

    Raises:
        OSError: its writer is alive, or it may not be touched.
    """
    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:
            if time.time() - status.st_mtime < _ABANDONED:
                return
        path.unlink()
    finally:
        os.close(handle)


def _is_process(number: int) -> bool:
    """Tell whether a process of this machine has a number."""
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True
