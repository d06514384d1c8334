"""Keep received studies on disk until they are done: what was taken survives a process that is killed.

Layout: `<spool>/<study>/images/*.dcm`, `result/` and `state.json`. All is written whole or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from app.core.atomic_io import save_bytes, sweep
from app.core.errors import OutputError, UsageError
from app.dicom.receiving import ReceivedImage

#: What was done with a study: begun, its result made, or refused for good.
Status = Literal["begun", "made", "refused"]
_STATUSES: Final = ("begun", "made", "refused")
_UID: Final = re.compile(r"[0-9][0-9.]{0,63}")


@dataclass(frozen=True)
class StudyState:
    """Tell what was done with a study.

    Attributes:
        images: fingerprint of those that it was done with (`SpooledStudy.fingerprint`).
        tries: of the step that the status leads to.
        due: seconds since the epoch of the next try.
        stem: begins the names of the result's files.
    """

    images: str
    status: Status
    tries: int = 0
    due: float = 0.0
    stem: str = ""


@dataclass(frozen=True)
class SpooledStudy:
    """Name a study in the spool by its folder."""

    folder: Path

    @property
    def name(self) -> str:
        """Give its UID."""
        return self.folder.name

    @property
    def images(self) -> Path:
        """Give the folder of the images that came."""
        return self.folder / "images"

    @property
    def result(self) -> Path:
        """Give the folder of the result."""
        return self.folder / "result"

    def fingerprint(self) -> str:
        """Tell which images are there."""
        return hashlib.sha256("\n".join(sorted(p.name for p in self.images.glob("*.dcm"))).encode()).hexdigest()

    def received(self) -> float:
        """Give the moment of the last image, in seconds since the epoch; 0 where there is none."""
        return max((p.stat().st_mtime for p in self.images.glob("*.dcm")), default=0.0)

    def state(self) -> StudyState | None:
        """Read what was done with it; None where nothing was, or nobody can tell."""
        try:
            form: dict[str, Any] = json.loads((self.folder / "state.json").read_bytes())
            state = StudyState(**form)
        except (OSError, ValueError, TypeError):
            return None
        return state if state.status in _STATUSES else None

    def note(self, state: StudyState) -> None:
        """Write what was done with it.

        Raises:
            OutputError: it cannot be written.
        """
        save_bytes(json.dumps(asdict(state)).encode(), self.folder / "state.json")

    def postpone(self, due: float) -> None:
        """Count a try that failed, and say when the next one is due.

        Raises:
            OutputError: it cannot be written.
        """
        state = self.state()
        if state is not None:
            self.note(replace(state, tries=state.tries + 1, due=due))


@dataclass
class Spool:
    """Hold the studies that came and are not done.

    Attributes:
        folder: for its owner alone; made where it is not there.
    """

    folder: Path
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Keep other nodes out while the context lasts.

        Raises:
            UsageError: another node works on it, or the folder cannot be used.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with (self.folder / ".lock").open("w") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for study in self.studies():
                    for folder in (study.folder, study.images, study.result):
                        sweep(folder)
                yield
        except BlockingIOError:
            raise UsageError(f"another node works on the spool {self.folder}; give another folder.") from None
        except OSError as error:
            raise UsageError(f"the spool {self.folder} cannot be used ({error.strerror or error}).") from None

    def studies(self) -> list[SpooledStudy]:
        """List the studies that are there."""
        return [SpooledStudy(p) for p in sorted(self.folder.iterdir()) if p.is_dir()]

    def store(self, image: ReceivedImage) -> None:
        """Keep an image on disk.

        Raises:
            OutputError: it cannot be written.
        """
        # What a sender calls an image must not lead to another folder.
        name = image.study if _UID.fullmatch(image.study) else hashlib.sha256(image.study.encode()).hexdigest()
        place = SpooledStudy(self.folder / name).images
        with self._lock:
            try:
                place.parent.mkdir(mode=0o700, exist_ok=True)
                place.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{place} cannot be made ({error.strerror}); make room there.") from None
            save_bytes(image.content, place / f"{hashlib.sha256(image.instance.encode()).hexdigest()[:32]}.dcm")

    def remove(self, study: SpooledStudy, images: str) -> bool:
        """Remove a study, unless further images came.

        Args:
            images: the fingerprint that it is removed for.

        Returns:
            Whether it is gone.
        """
        with self._lock:
            if study.fingerprint() != images:
                return False
            shutil.rmtree(study.folder, ignore_errors=True)
            return not study.folder.exists()
