"""Find subjects in a folder, and their sequences.

All of it comes from names and headers, without torch, so that `check` answers at once. Decoding may show more: a
damaged stream, voxels that are nowhere finite. `app.data.loading` then adds it through `Case.with_fault` and
`Case.with_empty`, and asks `plan` again.
"""

from __future__ import annotations

import filecmp
import logging
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from app.core.config import NamingOptions
from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError, VolumeError
from app.data.cases import Case, FileReading
from app.data.file_formats import foreign_stem
from app.data.file_tree import FEW, FileTree, few_of, walk
from app.data.naming.exams import Exam
from app.data.naming.grouping import group_images
from app.data.naming.reading import NamedImage
from app.data.naming.rules import parse_rules
from app.data.nifti_reader import find_emptiness, read_grid
from app.data.origin import made_by_tetrad

log = logging.getLogger(__name__)

_CHALLENGE = re.compile(r"^(?P<subject>.+)-(?:t1c|t1n|t2f|t2w)\.nii\.gz$", re.DOTALL)
_DIGITS = re.compile(r"\d+")


@dataclass(frozen=True)
class Scan:
    """List the subjects of a folder by name, and notes on the rest, one sentence each."""

    root: Path
    cases: tuple[Case, ...]
    notes: tuple[str, ...]


def scan(
    root: Path, exclude: Iterable[Path] = (), naming: NamingOptions | None = None, one_output: bool = False
) -> Scan:
    """Find the subjects below `root` and read their headers.

    Args:
        root: a BraSyn folder, one flat folder, one subject's folder or a BIDS tree; links are followed.
        exclude: folders to leave out (an output folder inside the input).
        naming: what the user says of names.
        one_output: whether all exams of one name would be written to one file, and so bar one another.

    Raises:
        UsageError: `root` is not a readable folder, or a naming rule cannot be read.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise UsageError(f"the input {root} {what}; give the folder that holds the subjects.")
    naming = naming or NamingOptions()
    rules = parse_rules(naming.names)
    tree = walk(root, exclude)
    exams, left = group_images(tree.images, root, rules, naming.name_from_folders, _unread(tree))
    found = [_case_of(exam, naming) for exam in exams]
    # What Tetrad made itself is no subject of its own.
    made = [n for c in found for n in c.notes if not c.files]
    elsewhere: dict[str, list[str]] = {}
    for other in found:
        if not other.files:
            elsewhere.setdefault(other.subject, []).extend(other.notes)
    cases = [_with_notes(c, elsewhere.get(c.subject, [])) for c in found if c.files or not c.notes]
    cases += [_unreadable(folder, reason) for folder, reason in tree.unreadable]
    empty, no_subject = _sort_empty(tree.empty, exams)
    cases += [_empty_subject(folder) for folder in empty]
    known = set(made)
    made += [n for c in cases for n in c.notes if n not in known]
    notes = (*_notes(tree, left, no_subject), *_few_notes(made))
    return Scan(root, tuple(sorted(_without_rivals(cases, one_output), key=lambda c: c.subject)), notes)


def inspect(subject: str, files: Mapping[Modality, Sequence[Path]], choose_run: str | None = None) -> Case:
    """Read the headers of a subject's files; an unusable file becomes a fault of its sequence.

    Args:
        choose_run: `first` or `last` of several files of one sequence; None asks the user.
    """
    ordered = {m: sorted(files[m], key=_natural) for m in MODALITIES if files.get(m)}
    if choose_run is not None:
        ordered = {m: [paths[0 if choose_run == "first" else -1]] for m, paths in ordered.items()}
    case = Case(subject=subject, files={m: paths[0] for m, paths in ordered.items()})
    for modality, paths in ordered.items():
        case = _read_header(case, modality, paths)
    return case


# ------------------------------------------------------------ one subject


def _case_of(exam: Exam, naming: NamingOptions) -> Case:
    files = {m: [i.path for i in images] for m, images in exam.files.items()}
    case = inspect(exam.name, files, naming.run)
    return replace(
        case,
        doubts=tuple(_doubt(exam.name, i) for i in exam.unknown if i.reading.sequence not in exam.files),
        readings=tuple(_readings(exam)),
        challenge_names=all(_is_challenge_name(i.path, exam.name) for images in exam.files.values() for i in images),
    )


def _read_header(case: Case, modality: Modality, paths: Sequence[Path]) -> Case:
    """Add the header of a sequence's file, or why it cannot be used."""
    if len(paths) > 1:
        names = " and ".join(str(p) for p in paths)
        advice = "keep one, or give --run first or --run last"
        reason = f"{case.subject} has {len(paths)} files for {modality}: {names}; {advice}."
        return replace(case, runs={**case.runs, modality: reason})
    try:
        grid = read_grid(paths[0])
        if made_by_tetrad(grid):
            return _without_own(case, modality)
        emptiness = find_emptiness(grid)
    except VolumeError as error:
        return case.with_fault(modality, str(error))
    except Exception as error:
        # One file must never end the search for all others.
        log.debug("%s", paths[0], exc_info=True)
        reason = f"{paths[0]} cannot be read (unexpected {type(error).__name__}: {error}); please report it."
        return case.with_fault(modality, reason)
    if emptiness is not None:
        return case.with_empty(modality, emptiness)
    return replace(case, grids={**case.grids, modality: grid})


def _without_own(case: Case, modality: Modality) -> Case:
    """Leave out a file that Tetrad made: it is no scan."""
    note = f"{case.files[modality]} was made by Tetrad (its header says so): it is no scan and is not used as one."
    return replace(case, files={m: f for m, f in case.files.items() if m != modality}, notes=(*case.notes, note))


def _with_notes(case: Case, notes: Sequence[str]) -> Case:
    """Add what was said of synthetic files that bear the subject's name elsewhere."""
    return replace(case, notes=(*case.notes, *notes))


def _unread(tree: FileTree) -> dict[Path, str]:
    """List files and folders of formats that are not read."""
    files = {p: f"it is a {p.suffix} file" for p in tree.strays if foreign_stem(p.name) is not None}
    return files | {folder: f"it holds {count} DICOM files" for folder, count in tree.dicom.items()}


def _doubt(subject: str, image: NamedImage) -> str:
    if image.reading.sequence is not None and image.reading.kind == "unknown" and "convert" in image.reading.why:
        return f"{image.path} seems to be the {image.reading.sequence} of {subject}, but {image.reading.why}."
    return (
        f"{image.path} may be a sequence of {subject}, but {image.reading.why}; rename it, or say which it is "
        f"(--name t1c={image.path.name}, for example; --name none={image.path.name} passes it over)."
    )


def _readings(exam: Exam) -> Iterable[FileReading]:
    """Say of each image of an exam what it was taken for."""
    for modality, images in exam.files.items():
        for image in images:
            yield FileReading(image.path, modality, _why(image), guessed=not image.reading.sure)
    for image in (*exam.unknown, *exam.others):
        yield FileReading(image.path, None, image.reading.why, guessed=image.reading.kind == "unknown")


def _why(image: NamedImage) -> str:
    reading = image.reading
    version = f", version {'+'.join(sorted(reading.version))}" if reading.version else ""
    return f"{reading.why}{version}"


def _is_challenge_name(path: Path, subject: str) -> bool:
    match = _CHALLENGE.match(path.name)
    return match is not None and match["subject"] == subject == path.parent.name


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """Sort `run-10` after `run-2`."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(p), "") if p.isdecimal() else (0, p) for p in parts], str(path)


# ------------------------------------------------------------ folders


def _unreadable(folder: Path, reason: str) -> Case:
    problem = f"{folder} may not be read by this user ({reason}); give it read permission."
    return Case(subject=folder.name, files={}, problem=problem)


def _empty_subject(folder: Path) -> Case:
    problem = f"{folder} is an empty folder; put at least one sequence into it or remove it."
    return Case(subject=folder.name, files={}, problem=problem)


def _sort_empty(folders: Sequence[Path], exams: Sequence[Exam]) -> tuple[list[Path], list[Path]]:
    """Tell empty folders that are named as the subjects beside them from folders that are no subjects'."""
    shapes: dict[Path, set[str]] = defaultdict(set)
    for exam in exams:
        for image in (i for images in exam.files.values() for i in images):
            for folder in image.path.parents:
                shapes[folder.parent].add(_DIGITS.sub("#", folder.name))
    own: list[Path] = []
    others: list[Path] = []
    for folder in folders:
        shape = _DIGITS.sub("#", folder.name)
        (own if "#" in shape and shape in shapes[folder.parent] else others).append(folder)
    return own, others


def _notes(tree: FileTree, left: Sequence[NamedImage], empty: Sequence[Path]) -> list[str]:
    """Say in a few sentences what is passed over."""
    notes = tree.notes[:FEW]
    if len(tree.notes) > FEW:
        notes.append(f"{len(tree.notes) - FEW} more folders are not searched for such reasons.")
    unknown = [i.path for i in left if i.reading.kind == "unknown"]
    for paths in (unknown, tree.strays):
        if paths:
            what = "is no sequence" if len(paths) == 1 else "are no sequences"
            notes.append(f"{few_of(paths)} {what} that Tetrad knows; ignored.")
    notes += filter(None, map(_unusable, unknown[:FEW]))
    if tree.dicom:
        count, places = sum(tree.dicom.values()), few_of(list(tree.dicom))
        notes.append(f"{places}: {count} files that look like DICOM are not read; convert them to NIfTI (dcm2niix).")
    if empty:
        notes.append(f"{few_of(empty)}: empty, passed over.")
    return notes


def _few_notes(notes: Sequence[str]) -> list[str]:
    return [*notes[:FEW], *([f"{len(notes) - FEW} more files were made by Tetrad."] if len(notes) > FEW else [])]


def _unusable(path: Path) -> str | None:
    """Say why an image could not be used under any name: four volumes in one file, say."""
    try:
        read_grid(path)
    except VolumeError as error:
        return str(error)
    return None


# ------------------------------------------------------------ several of one name


def _without_rivals(cases: list[Case], one_output: bool) -> list[Case]:
    """Bar subjects of one name: a patient must never get another's image.

    One exam with another sequence left out in each folder is no rival of itself, unless there is `one_output`: its
    copies share files, and make different sequences.
    """
    by_name: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        # Some file systems keep no difference of case, or of the two forms of `ü`.
        by_name[unicodedata.normalize("NFC", case.subject).casefold()].append(case)
    barred = {
        id(c): group for group in by_name.values() if len(group) > 1 for c in group if _is_rival(c, group, one_output)
    }
    return [_barred(c, barred[id(c)]) if c.problem is None and id(c) in barred else c for c in cases]


def _is_rival(case: Case, group: Sequence[Case], one_output: bool) -> bool:
    others = [c for c in group if c is not case and c.files]
    if one_output:
        return bool(case.files and others)
    wanted = _wanted(case)
    if not wanted or not case.files:
        return False
    return any(wanted & _wanted(o) or (_wanted(o) and not _share_a_file(case, o)) for o in others)


def _wanted(case: Case) -> set[Modality]:
    return {*case.absent, *case.empty, *case.faults}


def _share_a_file(case: Case, other: Case) -> bool:
    return any(_are_equal(case.files[m], other.files[m]) for m in case.files if m in other.files)


def _are_equal(path: Path, other: Path) -> bool:
    # Sizes alone are no evidence: all uncompressed files of one grid have the same.
    try:
        return filecmp.cmp(path, other, shallow=False)
    except OSError:
        return False


def _barred(case: Case, rivals: Sequence[Case]) -> Case:
    places = " and ".join(str(next(iter(c.files.values())).parent) for c in rivals if c.files)
    advice = "rename one of them, or give --name-from-folders"
    return replace(case, problem=f"two subjects are named {case.subject} ({places}); {advice}.")
