"""Find the folder that an exam lies in, and what folders say of their images."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from app.core.constants import Modality
from app.data.file_formats import image_stem
from app.data.naming.names import is_number, read_name
from app.data.naming.reading import NamedImage, NameReading
from app.data.naming.tables import CONTAINER_FOLDERS


class Places:
    """Know which folders only hold one sequence, and where an image's exam lies."""

    def __init__(self, root: Path, named: Sequence[NamedImage]) -> None:
        self._root = root
        self._sequences: dict[Path, set[str]] = defaultdict(set)
        self._members: Counter[Path] = Counter(image.path.parent for image in named)
        self._folders_of: dict[str, set[Path]] = defaultdict(set)
        for image in named:
            self._folders_of[_stem(image)].add(image.path.parent)
            for folder in self._folders_above(image.path):
                if image.sequence is not None:
                    self._sequences[folder].add(_family(image.sequence, folder))
        self._known: dict[Path, NameReading | None] = {}

    def place_of(self, image: NamedImage) -> Path:
        """Find the folder that an image's exam lies in."""
        subject = image.reading.subject
        if subject.startswith("sub-"):
            above = [f for f in self._folders_above(image.path) if f.name == subject]
            if above:
                return above[-1].parent
        folder = image.path.parent
        while folder != self._root and self._is_passed(folder):
            folder = folder.parent
        return folder

    def complete(self, image: NamedImage) -> NamedImage:
        """Add what the folders say where a name says nothing: the sequence, the subject, the session."""
        reading = image.reading
        if reading.subject.startswith("sub-") and not reading.session:
            session = next((f.name for f in self._folders_above(image.path) if f.name.startswith("ses-")), "")
            return replace(image, reading=replace(reading, session=session))
        folder = self._sequence_folder_of(image.path)
        if folder is None:
            return image
        stated = self._reading_of(folder)
        if stated is None:
            return image
        if reading.kind == "unknown" and reading.sequence is None and not self._sequences[folder]:
            subject = stated.subject or self._stem_as_subject(image, folder)
            why = f"its folder {folder.name} states the sequence"
            return replace(image, reading=NameReading("sequence", why, subject, stated.sequence))
        if reading.kind == "sequence" and not reading.subject and stated.subject:
            return replace(image, reading=replace(reading, subject=stated.subject, sure=False))
        return image

    def names_of(self, place: Path) -> tuple[str, ...]:
        """List the folders of a place below the root that say something."""
        parts = place.relative_to(self._root).parts
        told = tuple(p for p in parts if p.lower() not in CONTAINER_FOLDERS)
        return told or parts

    def _folders_above(self, path: Path) -> list[Path]:
        """List an image's folders below the root, nearest first."""
        folders: list[Path] = []
        folder = path.parent
        while folder not in {self._root, folder.parent}:
            folders.append(folder)
            folder = folder.parent
        return folders

    def _is_passed(self, folder: Path) -> bool:
        if folder.name.lower() in CONTAINER_FOLDERS and folder.parent != self._root:
            return True
        return self._reading_of(folder) is not None

    def _sequence_folder_of(self, path: Path) -> Path | None:
        for folder in self._folders_above(path):
            if self._reading_of(folder) is not None:
                return folder
            if folder.name.lower() not in CONTAINER_FOLDERS:
                return None
        return None

    def _reading_of(self, folder: Path) -> NameReading | None:
        """Read a folder that holds one sequence and is named by it; None for others."""
        if folder not in self._known:
            self._known[folder] = self._read_folder(folder)
        return self._known[folder]

    def _read_folder(self, folder: Path) -> NameReading | None:
        reading = read_name(image_stem(folder.name) or folder.name)
        if reading.kind != "sequence" or reading.sequence is None or (reading.rest and not is_number(reading.rest)):
            return None
        if self._sequences[folder] - {_family(reading.sequence, folder)}:
            return None
        return replace(reading, subject="" if is_number(reading.subject or "0") else reading.subject)

    def _stem_as_subject(self, image: NamedImage, folder: Path) -> str:
        """Take a file's name for its subject where the folders of all sequences hold the same names."""
        stem = _stem(image)
        alike = len(self._folders_of[stem]) > 1
        several = self._members[image.path.parent] > 1
        return stem if several or (alike and folder.parent == self._root) else ""


def _stem(image: NamedImage) -> str:
    return image_stem(image.path.name) or ""


def _family(sequence: Modality, folder: Path) -> str:
    """Name what a folder may hold in common: a folder `T1` may hold the T1 of both kinds."""
    plain = re.sub(r"^\d+[-_]", "", folder.name.lower()) in {"t1", "t1w"}
    return "t1" if plain and sequence in {"t1n", "t1c"} else sequence
