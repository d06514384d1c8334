"""Load matplotlib so that nobody else's files have a say in the pictures."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Variables of the environment by which matplotlib finds settings of its own.
_SETTINGS = ("MATPLOTLIBRC", "MPLCONFIGDIR", "MPLBACKEND")
#: Places of temporary files. `tempfile` would take the working directory as well, which may be the output.
_PLACES = ("/tmp", "/var/tmp", "/usr/tmp")


def figure_class(spare: Path | None = None) -> type[Figure]:
    """Import matplotlib at first use; return its class of figures.

    It would read settings from the working directory and the home, and keep its list of fonts there. Here it gets an
    empty folder for the time of the import.

    Args:
        spare: a folder to make that in where the system has no temporary one.

    Raises:
        OSError: no folder can be written to.
        ImportError, MemoryError: it cannot be loaded.
    """
    if "matplotlib" not in sys.modules:
        with _empty_folder(spare) as folder, _settings_in(folder), _working_in(folder):
            # All that a picture needs: what cannot be loaded is known before the first one.
            from matplotlib import font_manager  # noqa: F401
            from matplotlib.backends import backend_agg  # noqa: F401
    from matplotlib.figure import Figure

    return Figure


@contextlib.contextmanager
def _empty_folder(spare: Path | None) -> Iterator[Path]:
    folder = _new_folder([*filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP"))), *_PLACES], spare)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _new_folder(places: Sequence[str], spare: Path | None) -> Path:
    for place in places:
        with contextlib.suppress(OSError):
            return Path(tempfile.mkdtemp(prefix="tetrad-", dir=place))
    if spare is None:
        raise FileNotFoundError("there is no folder for temporary files")
    return Path(tempfile.mkdtemp(prefix=".tetrad-", dir=spare))


@contextlib.contextmanager
def _settings_in(folder: Path) -> Iterator[None]:
    """Let matplotlib keep what it keeps in a folder."""
    before = {name: os.environ.pop(name) for name in _SETTINGS if name in os.environ}
    os.environ["MPLCONFIGDIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["MPLCONFIGDIR"]
        os.environ.update(before)


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """Work in a folder; come back even to a working directory that has been removed."""
    before = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))
    try:
        os.chdir(folder)
        yield
    finally:
        os.fchdir(before)
        os.close(before)
