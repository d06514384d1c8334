"""Put the images of a folder together to exams: who is one subject, and which file is which sequence.

An exam is a name within a place. The place is the folder of the files, without folders that only hold one sequence
(`P001/T1/...`) or nothing of their own (`P001/NIFTI/...`); of a BIDS name it is the data set. So people of one name in
two places are never taken for one.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from app.core.constants import MODALITIES, Modality
from app.data.file_formats import foreign_stem, image_stem
from app.data.naming.exams import Exam, doubt_neighbours, without_raw_copies
from app.data.naming.names import is_number, read_name
from app.data.naming.places import Places
from app.data.naming.reading import NamedImage, NameReading
from app.data.naming.rules import NamingRule
from app.data.naming.versions import choose_versions

#: Folders named so are time points: their patient is the folder above.
_VISIT = re.compile(
    r"^(week|wk|visit|v|ses|session|tp|timepoint|time|t|baseline|base|bl|followup|follow-up|fu|day|d|month|m|year|y|scan|study|exam|"
    r"pre|post|preop|postop|pre-op|post-op|date)[-_ ]?\d*$|^\d{4}[-_.]?\d{2}[-_.]?\d{2}$",
    re.IGNORECASE,
)


#: Names that stand for any subject.
_PLACEHOLDER = re.compile(r"^(VSD\.Brain.*|scan|image|img|mri|mr|anon\w*|unnamed)$", re.IGNORECASE)


_Key: TypeAlias = tuple[Path, str]


def group_images(
    images: Iterable[Path],
    root: Path,
    rules: Sequence[NamingRule] = (),
    name_from_folders: bool = False,
    unread: Mapping[Path, str] | None = None,
) -> tuple[list[Exam], list[NamedImage]]:
    """Group images by exam.

    Args:
        rules: naming rules of the user, which go first.
        name_from_folders: name every exam by its folders and its own name.
        unread: files and folders that may hold a sequence, but are not read, with what they are.

    Returns:
        The exams, and the images that belong to none of them.
    """
    named = _with_time_points([_read(path, root, rules) for path in images])
    places = Places(root, named)
    groups: dict[_Key, list[NamedImage]] = defaultdict(list)
    strays: list[tuple[Path, NamedImage]] = []
    for image in map(places.complete, named):
        place = places.place_of(image)
        if image.reading.kind == "sequence":
            groups[place, _key_name(image.reading)].append(image)
        else:
            strays.append((place, image))
    foreign = {i.path: i for i in _unread(unread or {})}
    strays += [(places.place_of(i), i) for i in foreign.values()]
    exams = without_raw_copies([_exam(key, members) for key, members in _split(groups).items()])
    exams = doubt_neighbours(exams, root)
    left = _attach(exams, strays, root)
    _name(exams, places, name_from_folders)
    return exams, [i for i in left if i.path not in foreign]


def _read(path: Path, root: Path, rules: Sequence[NamingRule]) -> NamedImage:
    for rule in rules:
        if (reading := rule.read(path, root)) is not None:
            return NamedImage(path, reading)
    return NamedImage(path, read_name(image_stem(path.name) or path.name))


def _unread(paths: Mapping[Path, str]) -> Iterable[NamedImage]:
    """Read the names of what is not read, where they state a sequence."""
    for path, what in paths.items():
        reading = read_name(foreign_stem(path.name) or path.name)
        if reading.kind == "sequence":
            why = f"{what}, which is not read; convert it to .nii.gz"
            yield NamedImage(path, replace(reading, kind="unknown", why=why))


def _with_time_points(named: Sequence[NamedImage]) -> list[NamedImage]:
    """Read `P1_T1_FLAIR` as a FLAIR of time point T1 where `P1_T1_T2` beside it proves that."""
    proven = {(i.path.parent, i.reading.time_point) for i in named if i.reading.proves_time_point}
    return [
        replace(i, reading=replace(i.reading, kind="sequence", subject=i.reading.time_point or "", sure=False))
        if i.reading.time_point is not None and (i.path.parent, i.reading.time_point) in proven else i
        for i in named
    ]  # fmt: skip


def _key_name(reading: NameReading) -> str:
    """Give the name that a group has in common: composed, so that both forms of `ü` are one."""
    return unicodedata.normalize("NFC", _stated_name(reading))


def _stated_name(reading: NameReading) -> str:
    return _join(reading.subject, reading.session)


# ------------------------------------------------------------ groups


def _split(groups: dict[_Key, list[NamedImage]]) -> dict[_Key, list[NamedImage]]:
    """Split groups by what follows the sequence in their names, and join nameless files to the one subject beside."""
    result: dict[_Key, list[NamedImage]] = defaultdict(list)
    for (place, name), members in groups.items():
        for image in members:
            result[place, _join(name, _exam_suffix(image, members, bare=not name))].append(image)
    names: dict[Path, list[str]] = defaultdict(list)
    for place, name in result:
        if name:
            names[place].append(name)
    for place, name in list(result):
        beside = names[place]
        if name or len(beside) != 1:
            continue
        other = result[place, beside[0]]
        if place.name == beside[0] and not {i.sequence for i in other} & {i.sequence for i in result[place, ""]}:
            other += result.pop((place, ""))
    return dict(result)


def _exam_suffix(image: NamedImage, members: Sequence[NamedImage], bare: bool) -> str:
    """Give the words that, shared by several sequences, tell one exam of a subject from another."""
    rest = image.reading.rest
    if not rest:
        return ""
    shared = {i.sequence for i in members if i.reading.rest == rest}
    if is_number(rest):
        doubled = len({i.sequence for i in members}) < len(members)
        return rest if bare and doubled and len(shared) > 1 else ""
    return rest if len(shared) > 1 else ""


def _join(*parts: str) -> str:
    return "_".join(filter(None, parts))


def _exam(key: _Key, members: Sequence[NamedImage]) -> Exam:
    """Make an exam of the files of one name in one place."""
    place, name = key
    exam = Exam("", place, _as_given(name, members))
    later = any(i.reading.has_time_word for i in members if i.sequence in {"t2w", "t2f"})
    candidates: dict[Modality, list[NamedImage]] = defaultdict(list)
    for image in members:
        if (doubt := _doubt_of(image, members, later, name)) is not None:
            exam.unknown.append(replace(image, reading=replace(image.reading, kind="unknown", why=doubt)))
        elif image.sequence is not None:
            candidates[image.sequence].append(image)
    chosen, exam.others, mixed = choose_versions(candidates)
    exam.files = {m: chosen[m] for m in MODALITIES if m in chosen}
    exam.unknown += mixed
    return exam


def _as_given(name: str, members: Sequence[NamedImage]) -> str:
    """Give a name as all files have it, or else composed."""
    stated = {_stated_name(i.reading) for i in members}
    given = stated.pop()
    return given if not stated and unicodedata.normalize("NFC", given) == name else name


def _doubt_of(image: NamedImage, members: Sequence[NamedImage], later: bool, name: str) -> str | None:
    """Say why a name is not to be trusted among its neighbours; None where it is."""
    reading = image.reading
    if reading.by_time_word and later:
        return "'post' or 'pre' in its name, and in those of other sequences, may speak of a time point"
    if reading.rest and not is_number(reading.rest) and not _exam_suffix(image, members, bare=not name):
        if len({i.sequence for i in members}) == 1 and len(members) == 1 and reading.sequence in {"t2w", "t2f"}:
            return None
        return f"{reading.rest!r} in its name is not understood"
    return None


# ------------------------------------------------------------ images that are no sequence


def _attach(exams: Sequence[Exam], strays: Iterable[tuple[Path, NamedImage]], root: Path) -> list[NamedImage]:
    """Give images that are no sequence to the exam in whose folder they lie; return the rest."""
    at: dict[Path, dict[str, Exam]] = defaultdict(dict)
    for exam in exams:
        at[exam.place][unicodedata.normalize("NFC", exam.own_name)] = exam
    left: list[NamedImage] = []
    for place, image in strays:
        owner = _owner(place, image, at, root)
        if owner is None:
            left.append(image)
        else:
            (owner.others if image.reading.kind == "other" else owner.unknown).append(image)
    return left


def _owner(place: Path, image: NamedImage, at: Mapping[Path, Mapping[str, Exam]], root: Path) -> Exam | None:
    folder, name = place, unicodedata.normalize("NFC", image.path.name)
    while True:
        near = at.get(folder, {})
        named = _longest_beginning(name, near)
        if named is not None:
            return named
        if len(near) == 1 and (folder != root or folder == place):
            return next(iter(near.values()))
        if folder in {root, folder.parent}:
            return None
        folder = folder.parent


def _longest_beginning(name: str, exams: Mapping[str, Exam]) -> Exam | None:
    """Find the exam with the longest name that a file's name begins with, where another word follows."""
    for end in range(len(name), 0, -1):
        if not name[end : end + 1].isalnum() and name[:end] in exams:
            return exams[name[:end]]
    return None


# ------------------------------------------------------------ names


def _name(exams: Sequence[Exam], places: Places, name_from_folders: bool) -> None:
    """Name every exam: as its files say, or else by its folders."""
    if name_from_folders:
        for exam in exams:
            told = places.names_of(exam.place)
            parts = told if exam.own_name in told[-1:] else (*told, exam.own_name)
            exam.name = _join(*parts) or exam.place.name
        return
    generic = _generic_names(exams)
    by_folder = [
        e for e in exams
        if not e.own_name or e.own_name in generic or (_PLACEHOLDER.match(e.own_name) and places.names_of(e.place))
    ]  # fmt: skip
    for exam in exams:
        exam.name = exam.own_name
    for exam, name in zip(by_folder, _folder_names([places.names_of(e.place) for e in by_folder]), strict=True):
        exam.name = name or exam.place.name


def _generic_names(exams: Sequence[Exam]) -> set[str]:
    """Find names that say nothing: every folder calls its only subject so (`case01/exam-t1n`, `case02/exam-t1n`)."""
    places: dict[str, list[Path]] = defaultdict(list)
    crowds: dict[Path, int] = defaultdict(int)
    for exam in exams:
        places[exam.own_name].append(exam.place)
        crowds[exam.place] += 1
    return {
        name for name, folders in places.items()
        if name and len(folders) > 1 and not name.startswith("sub-")
        and all(crowds[f] == 1 and f.name != name for f in folders) and not _are_nested(folders)
    }  # fmt: skip


def _are_nested(folders: Sequence[Path]) -> bool:
    """Tell whether one of the folders lies below another."""
    known = set(folders)
    return any(parent in known for folder in folders for parent in folder.parents)


def _folder_names(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Name places by as few of their last folders as tell them apart; a time point's by its patient as well."""
    lengths = [2 if len(p) > 1 and _VISIT.match(p[-1]) else 1 for p in paths]
    while True:
        names = [_join(*p[-n:]) for p, n in zip(paths, lengths, strict=True)]
        counts = Counter(names)
        longer = [n + (counts[name] > 1 and n < len(p)) for p, n, name in zip(paths, lengths, names, strict=True)]
        if longer == lengths:
            return names
        lengths = longer
