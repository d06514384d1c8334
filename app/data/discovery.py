"""Find subjects in a folder, their sequences and their segmentations.

All of it comes from names and headers, without torch, so that `check` answers at once. Decoding may show more: a
damaged stream, voxels that are nowhere finite. `app.data.loading` then adds it through `Case.with_fault` and
`Case.with_empty`, and asks `plan` again.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError, VolumeError
from app.data.cases import Case
from app.data.nifti_reader import find_emptiness, read_grid

log = logging.getLogger(__name__)

#: Spellings of BraTS and BraSyn years, lower case.
_TOKENS: dict[str, Modality] = {
    "t1n": "t1n",
    "t1": "t1n",
    "t1c": "t1c",
    "t1ce": "t1c",
    "t1gd": "t1c",
    "t2w": "t2w",
    "t2": "t2w",
    "t2f": "t2f",
    "flair": "t2f",
}
_NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
_BRATS = re.compile(rf"^(?:(?P<subject>.+)[-_.])?(?P<token>{'|'.join(_TOKENS)})$", re.IGNORECASE)
_BIDS = re.compile(r"^(?P<subject>sub-[^_]+(?:_ses-[^_]+)?)(?P<entities>(?:_[^_]+)*)_(?P<suffix>T1w|T2w|FLAIR)$")
_SEGMENTATION = re.compile(r"(^|[-_.])(seg|segmentation|mask|dseg)$", re.IGNORECASE)
_BRATS_SEGMENTATION = re.compile(r"^(?:(?P<subject>.+)[-_])?seg\.nii(\.gz)?$", re.IGNORECASE)
#: Parts of a BIDS tree that repeat or precede the raw images.
_NOT_RAW = {"derivatives", "sourcedata"}
#: Folders deeper than this are no subjects' any more.
_MAX_DEPTH = 8
_SIDECARS = (".json", ".tsv", ".bval", ".bvec")


@dataclass(frozen=True)
class Scan:
    """List the subjects of a folder by name, and notes on the rest, one sentence each."""

    root: Path
    cases: tuple[Case, ...]
    notes: tuple[str, ...]


def scan(root: Path, exclude: Iterable[Path] = ()) -> Scan:
    """Find the subjects below `root` and read their headers.

    Args:
        root: a BraSyn folder, one flat folder, one subject's folder or a BIDS tree; links are followed.
        exclude: folders to leave out (an output folder inside the input).

    Raises:
        UsageError: `root` is not a readable folder.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UsageError(f"the input {root} {what}; give the folder that holds the subjects.")
    notes: list[str] = []
    cases: list[Case] = []
    images: list[Path] = []
    for folder, names, problem in _walk(root, {p.resolve() for p in exclude}, notes):
        if problem is not None:
            cases.append(Case(subject=folder.name, files={}, problem=problem))
        images += [folder / name for name in names]
    for (subject, _), files in _renamed(_grouped(images, root, notes), root).items():
        cases.append(inspect(subject, files))
    ordered = sorted(_without_rivals(cases), key=lambda c: c.subject)
    return Scan(root=root, cases=tuple(ordered), notes=tuple(notes))


def inspect(subject: str, files: dict[Modality, list[Path]]) -> Case:
    """Read the headers of a subject's files; an unusable file becomes a fault of its sequence."""
    case = Case(subject=subject, files={m: sorted(paths)[0] for m, paths in files.items()})
    for modality in MODALITIES:
        paths = sorted(files.get(modality, []))
        if not paths:
            continue
        if len(paths) > 1:
            names = " and ".join(str(p) for p in paths)
            case = case.with_fault(modality, f"{subject} has {len(paths)} files for {modality}: {names}; keep one.")
            continue
        try:
            grid = read_grid(paths[0])
            emptiness = find_emptiness(grid)
        except VolumeError as error:
            case = case.with_fault(modality, str(error))
            continue
        if emptiness is not None:
            case = case.with_empty(modality, emptiness)
        else:
            case.grids[modality] = grid
    return case


def parse_name(path: Path) -> tuple[str, Modality] | None:
    """Read subject and sequence from a file name; None where it states no sequence.

    The folder's name stands for a subject that is not named.
    """
    if not _NIFTI.search(path.name):
        return None
    stem = _NIFTI.sub("", path.name)
    if bids := _BIDS.match(stem):
        suffix = bids["suffix"]
        if suffix == "T1w":
            return bids["subject"], "t1c" if re.search(r"_ce-", bids["entities"]) else "t1n"
        return bids["subject"], "t2w" if suffix == "T2w" else "t2f"
    if brats := _BRATS.match(stem):
        return brats["subject"] or path.parent.name, _TOKENS[brats["token"].lower()]
    return None


def find_segmentations(folder: Path, cases: Iterable[Case] = ()) -> dict[str, Path]:
    """Find the segmentation of each subject below a folder.

    It is named `<subject>-seg.nii[.gz]`, or `seg.nii[.gz]` in a folder of the subject's name.

    Args:
        cases: whose segmentation may have another name where a folder holds one subject and one segmentation; one
            beside the sequences goes before one elsewhere.

    Raises:
        UsageError: the folder does not exist.
    """
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist.")
    masks: dict[str, list[Path]] = {}
    beside: dict[Path, list[Path]] = {}
    for path in images_below(folder):
        if match := _BRATS_SEGMENTATION.match(path.name):
            masks.setdefault(match["subject"] or path.parent.name, []).append(path)
            beside.setdefault(path.parent, []).append(path)
    places = [(case, {file.parent for file in case.files.values()}) for case in cases]
    subjects = Counter(place for _, folders in places for place in folders)
    for case, folders in places:
        near = [path for place in sorted(folders) for path in beside.get(place, [])]
        alone = all(subjects[place] == 1 for place in folders)
        if own := [path for path in masks.get(case.subject, []) if path in near]:
            masks[case.subject] = own
        elif alone and len(near) == 1:
            masks[case.subject] = near
    for subject, paths in masks.items():
        if len(paths) > 1:
            log.warning("%s has %d segmentations; %s is used.", subject, len(paths), paths[0])
    return {subject: paths[0] for subject, paths in masks.items()}


def images_below(folder: Path) -> list[Path]:
    """List every `.nii` and `.nii.gz` file below a folder, sorted, following links once."""
    images: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        images += [Path(place, name) for name in names if _NIFTI.search(name)]
    return sorted(images)


def _walk(root: Path, barred: set[Path], notes: list[str]) -> Iterator[tuple[Path, list[str], str | None]]:
    """Yield each folder once, with its visible file names sorted, or its problem."""
    seen: set[tuple[int, int]] = set()
    pending = [(root, 0)]
    while pending:
        folder, depth = pending.pop()
        try:
            status = folder.stat()
            if folder.resolve() in barred or (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            yield folder, [], f"{folder} may not be read by this user ({error.strerror}); give it read permission."
            continue
        if not entries and folder != root:
            yield folder, [], f"{folder} is an empty folder; put at least one sequence into it or remove it."
            continue
        folders = [e for e in entries if _is_folder(e)]
        for entry in reversed(folders):
            reason = _reason_to_stay_out(entry, root, depth)
            if reason is None:
                pending.append((Path(entry.path), depth + 1))
            else:
                notes.append(f"{entry.path} {reason}; it is not searched.")
        yield folder, [e.name for e in entries if e not in folders], None


def _grouped(
    images: Iterable[Path], root: Path, notes: list[str]
) -> dict[tuple[str, Path], dict[Modality, list[Path]]]:
    """Group files by subject and place, then by sequence; note files that are none."""
    groups: dict[tuple[str, Path], dict[Modality, list[Path]]] = {}
    for path in images:
        parsed = parse_name(path)
        if parsed is None:
            if not _is_companion(path.name):
                notes.append(f"{path} is no sequence that Tetrad knows; it is ignored.")
            continue
        subject, modality = parsed
        # The sessions of a BIDS subject are told apart by name; elsewhere the folder decides.
        place = path.parent if not subject.startswith("sub-") else root
        groups.setdefault((subject, place), {}).setdefault(modality, []).append(path)
    return groups


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link that cannot be followed is dealt with as a file: it is named if it bears a sequence's name.
        return False


def _reason_to_stay_out(entry: os.DirEntry[str], root: Path, depth: int) -> str | None:
    if entry.name in _NOT_RAW:
        return "holds processed or source data, not the raw images"
    if entry.is_symlink() and Path(entry.path).resolve() in root.resolve().parents:
        return "is a link that leads out of the input to a folder above it"
    return "is nested too deeply" if depth >= _MAX_DEPTH else None


def _is_companion(name: str) -> bool:
    return name.lower().endswith(_SIDECARS) or bool(_SEGMENTATION.search(_NIFTI.sub("", name)))


def _renamed(
    groups: dict[tuple[str, Path], dict[Modality, list[Path]]], root: Path
) -> dict[tuple[str, Path], dict[Modality, list[Path]]]:
    """Name subjects by their folders where all folders call their files alike.

    An example is `case01/scan-t1n` beside `case02/scan-t1n`. Each of these folders must hold nothing else; other
    subjects of one name are barred later.
    """
    places: dict[str, list[Path]] = {}
    for subject, folder in groups:
        places.setdefault(subject, []).append(folder)
    crowded = {f for _, f in groups if sum(f == other for _, other in groups) > 1} | {root}
    renamed: dict[tuple[str, Path], dict[Modality, list[Path]]] = {}
    for (subject, folder), files in groups.items():
        alike = len(places[subject]) > 1 and not crowded & set(places[subject])
        renamed[(folder.name if alike else subject, folder)] = files
    return renamed


def _without_rivals(cases: list[Case]) -> list[Case]:
    """Bar subjects whose outputs would bear one name: a patient must never get another's image."""
    wanted: dict[tuple[str, Modality], list[Case]] = {}
    for case in cases:
        for modality in {*case.absent, *case.empty, *case.faults}:
            wanted.setdefault((case.subject, modality), []).append(case)
    rivals = {id(c): group for group in wanted.values() if len(group) > 1 for c in group}
    return [_barred(c, rivals[id(c)]) if c.problem is None and id(c) in rivals else c for c in cases]


def _barred(case: Case, rivals: list[Case]) -> Case:
    places = " and ".join(str(next(iter(c.files.values())).parent) for c in rivals if c.files)
    return replace(case, problem=f"two subjects are named {case.subject} ({places}); rename one of them.")
