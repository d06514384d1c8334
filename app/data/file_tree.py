"""Walk the input folder: its images, and what is said of everything else."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.data.file_formats import image_stem, is_dicom
from app.data.naming.tables import NOT_RAW_FOLDERS, SYSTEM_FOLDERS

#: Folders deeper than this are no subjects' any more.
MAX_DEPTH = 8
#: Files named one by one in a note; of more, only their number is said.
FEW = 3
_SIDECARS = (".json", ".tsv", ".bval", ".bvec", ".csv", ".txt", ".md", ".mat", ".cfg", ".yaml", ".yml", ".xml", ".ini")
#: Files of a system, which nobody put there on purpose.
_SYSTEM_FILES = frozenset({"thumbs.db", "desktop.ini", "dicomdir", "readme", "license", "changes", "md5sums"})
#: Files of one folder that are looked into for DICOM.
_PROBES = 3


@dataclass
class FileTree:
    """List what lies below a folder.

    Attributes:
        images: files with the ending of an image, sorted within their folder.
        strays: other files, unless they are known companions.
        empty: folders without any visible entry.
        unreadable: folders that this user may not read, with the reason.
        dicom: folders with DICOM files, with their number.
        notes: further sentences.
    """

    images: list[Path] = field(default_factory=list)
    strays: list[Path] = field(default_factory=list)
    empty: list[Path] = field(default_factory=list)
    unreadable: list[tuple[Path, str]] = field(default_factory=list)
    dicom: dict[Path, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def walk(root: Path, exclude: Iterable[Path] = ()) -> FileTree:
    """List the files below a folder; links are followed once.

    Args:
        exclude: folders to leave out.
    """
    tree = FileTree()
    barred = {p.resolve() for p in exclude}
    seen: set[tuple[int, int]] = set()
    pending = [(root, 0)]
    while pending:
        folder, depth = pending.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen or folder.resolve() in barred:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            tree.unreadable.append((folder, error.strerror or str(error)))
            continue
        if not entries and folder != root:
            tree.empty.append(folder)
        folders = _take_entries(tree, folder, entries, root, depth)
        pending += [(path, depth + 1) for path in reversed(folders)]
    return tree


def images_below(folder: Path) -> list[Path]:
    """List every image below a folder, sorted, following links once."""
    images: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        images += [Path(place, name) for name in names if image_stem(name) is not None]
    return sorted(images)


def few_of(paths: Sequence[Path]) -> str:
    """Name some files: all if they are few, else the first and the number of the rest."""
    shown = ", ".join(str(p) for p in paths[:FEW])
    return shown if len(paths) <= FEW else f"{shown} and {len(paths) - FEW} more"


def _take_entries(
    tree: FileTree, folder: Path, entries: Sequence[os.DirEntry[str]], root: Path, depth: int
) -> list[Path]:
    """Sort a folder's entries into the tree; return the folders to enter."""
    folders: list[Path] = []
    plain: list[Path] = []
    for entry in entries:
        path = folder / entry.name
        if not _is_folder(entry):
            (tree.images if image_stem(entry.name) is not None else plain).append(path)
        elif entry.name.lower() in SYSTEM_FOLDERS:
            continue
        elif (reason := _reason_to_stay_out(entry, root, depth)) is None:
            folders.append(path)
        else:
            tree.notes.append(f"{path} {reason}; it is not searched.")
    _take_plain(tree, folder, [p for p in plain if not _is_companion(p.name)])
    return folders


def _take_plain(tree: FileTree, folder: Path, plain: Sequence[Path]) -> None:
    """Sort files that are no images by their names: DICOM, which is told by the first few, or strays."""
    suspects = [p for p in plain if p.suffix.lower() in {"", ".dcm", ".ima", ".dicom"} or p.suffix[1:].isdigit()]
    if any(is_dicom(p) or p.suffix.lower() in {".dcm", ".ima"} for p in suspects[:_PROBES]):
        tree.dicom[folder] = len(suspects)
        plain = [p for p in plain if p not in set(suspects)]
    tree.strays += plain


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link that cannot be followed is dealt with as a file: it is named if it bears a sequence's name.
        return False


def _reason_to_stay_out(entry: os.DirEntry[str], root: Path, depth: int) -> str | None:
    if entry.name in NOT_RAW_FOLDERS:
        return "holds processed or source data, not the raw images"
    if entry.is_symlink() and Path(entry.path).resolve() in root.resolve().parents:
        return "is a link that leads out of the input to a folder above it"
    return "is nested too deeply" if depth >= MAX_DEPTH else None


def _is_companion(name: str) -> bool:
    lower = name.lower()
    return lower.endswith(_SIDECARS) or lower.split(".")[0] in _SYSTEM_FILES or lower in _SYSTEM_FILES
