"""One subject's exam, and what its neighbours say of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.core.constants import Modality
from app.data.naming.reading import NamedImage
from app.data.naming.versions import RAW, passed_over, rank


@dataclass
class Exam:
    """Hold the files of one subject's exam.

    Attributes:
        name: what its outputs bear.
        place: the folder that, with the name, tells it from others.
        own_name: the name that its files state; empty where they state none.
        files: those of each sequence: one, or runs of one scan.
        others: images that are passed over, with the reason in their reading.
        unknown: images whose names are not understood.
    """

    name: str
    place: Path
    own_name: str
    files: dict[Modality, list[NamedImage]] = field(default_factory=dict)
    others: list[NamedImage] = field(default_factory=list)
    unknown: list[NamedImage] = field(default_factory=list)


def without_raw_copies(exams: Sequence[Exam]) -> list[Exam]:
    """Pass over an exam of unstripped copies where another place has the same one stripped.

    What that one lacks is doubted there: the sequence was acquired, and is not to be made anew in silence.
    """
    by_name: dict[str, list[Exam]] = defaultdict(list)
    for exam in exams:
        by_name[exam.own_name].append(exam)
    best_of = {name: min(copies, key=_rank) for name, copies in by_name.items()}
    kept = []
    for exam in exams:
        best = best_of[exam.own_name]
        if not (exam.own_name and _rank(exam) == RAW > _rank(best)):
            kept.append(exam)
            continue
        for modality, images in exam.files.items():
            if modality in best.files:
                best.others += [passed_over(image, modality) for image in images]
            else:
                best.unknown += [image.doubted("it has another version than the rest of the exam") for image in images]
    return kept


def doubt_neighbours(exams: Sequence[Exam], root: Path) -> list[Exam]:
    """Doubt a sequence that an exam lacks and that lies in a nameless exam beside it or in a folder below.

    Such files may be the same patient's. Where they are another's, a rule or another folder says so.
    """
    places: dict[Path, list[Exam]] = defaultdict(list)
    named_at: dict[Path, list[Exam]] = defaultdict(list)
    for exam in exams:
        places[exam.place].append(exam)
        if exam.own_name:
            named_at[exam.place].append(exam)
    swallowed = set()
    for exam in exams:
        if exam.own_name.startswith("sub-"):
            continue
        named = named_at[exam.place]
        if not exam.own_name and len(named) == 1:
            _doubt(named[0], exam, "its name states no subject")
            if not set(exam.files) & set(named[0].files):
                swallowed.add(id(exam))
        for folder in exam.place.parents:
            if folder == root or root not in folder.parents:
                break
            for above in places.get(folder, []):
                if not exam.own_name or exam.own_name in {above.own_name, folder.name}:
                    _doubt(above, exam, "it lies in a folder below the others")
    return [exam for exam in exams if id(exam) not in swallowed]


def _doubt(exam: Exam, neighbour: Exam, why: str) -> None:
    """Add what an exam lacks and its neighbour has to what is not understood of it."""
    for modality, images in neighbour.files.items():
        if modality not in exam.files:
            exam.unknown += [image.doubted(why) for image in images]


def _rank(exam: Exam) -> int:
    return min((rank(i.reading.version) for images in exam.files.values() for i in images), default=0)
