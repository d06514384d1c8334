"""Find the exams as scanned of a folder: each is a folder of its own, DICOM or NIfTI."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from app.core.errors import NothingToDo, UsageError
from app.data.cases import Case
from app.data.discovery import Scan
from app.data.file_tree import few_of


@dataclass(frozen=True)
class StudyCase(Case):
    """Describe an exam as scanned; which of its files is which sequence is known when it is read.

    Attributes:
        folder: holds the exam's files, and no other exam's.
    """

    folder: Path = Path()


def find_studies(root: Path, exclude: Iterable[Path] = ()) -> Scan:
    """List the folders of a folder, each an exam; their files are not looked at.

    Args:
        exclude: folders to leave out.

    Raises:
        UsageError: `root` is no folder that can be read.
        NothingToDo: it holds no folder.
    """
    if not root.is_dir():
        raise UsageError(f"the input {root} is no folder; give the folder that holds a folder per exam.")
    own = {folder.resolve() for folder in exclude}
    entries = sorted(p for p in root.iterdir() if not p.name.startswith(".") and p.resolve() not in own)
    folders = [p for p in entries if p.is_dir()]
    if not folders:
        raise NothingToDo(f"{root} holds no folder; give the folder that holds a folder per exam (one: `clinic`).")
    files = [p for p in entries if not p.is_dir()]
    notes = (f"{few_of(files)}: passed over, since exams lie in folders of their own.",) if files else ()
    return Scan(root, tuple(StudyCase(f.name, {}, folder=f) for f in folders), notes)
