"""Tell what a container loses when it ends: what is written beside its mounts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

#: File systems that container engines lay over an image.
_LAYERED: Final = frozenset({"overlay", "aufs", "fuse.fuse-overlayfs", "fuse-overlayfs"})
#: Files by which Docker and Podman mark a container.
_MARKS: Final = ("/.dockerenv", "/run/.containerenv")
_MOUNTS: Final = Path("/proc/self/mountinfo")


def is_lost_with_container(folder: Path) -> bool:
    """Tell whether a folder, there or not yet, lies in a container's own file system and goes with it."""
    mounts = read_mounts()
    in_container = mounts.get(Path("/")) in _LAYERED or any(Path(mark).exists() for mark in _MARKS)
    return in_container and mount_of(folder, mounts) == Path("/")


def read_mounts(table: Path = _MOUNTS) -> dict[Path, str]:
    """Read which kind of file system is mounted where; nothing where the system does not tell.

    Args:
        table: of the form of `/proc/self/mountinfo` (`man 5 proc`).
    """
    try:
        lines = table.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return {}
    mounts = {}
    for line in lines:
        own, _, filesystem = line.partition(" - ")
        fields, kind = own.split(), filesystem.split()
        if len(fields) > 4 and kind:
            mounts[Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), fields[4]))] = kind[0]
    return mounts


def mount_of(folder: Path, mounts: Mapping[Path, str]) -> Path:
    """Find the mount that a folder lies on, or will."""
    place = folder.resolve()
    return next((p for p in (place, *place.parents) if p in mounts), Path("/"))
