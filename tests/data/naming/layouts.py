"""Group a list of file names, without any file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.data.naming.grouping import group_images
from app.data.naming.rules import parse_rules

ROOT = Path("/in")


@dataclass
class Layout:
    """What a folder of these names holds: per subject the file of each sequence, and the names of the rest."""

    subjects: dict[str, dict[str, str]] = field(default_factory=dict)
    runs: dict[str, list[str]] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)


def layout(*files: str, rules: Sequence[str] = (), name_from_folders: bool = False) -> Layout:
    exams, left = group_images([ROOT / f for f in sorted(files)], ROOT, parse_rules(rules), name_from_folders)
    found = Layout(left={_name(i.path) for i in left})
    for exam in exams:
        assert exam.name not in found.subjects, exam.name
        found.subjects[exam.name] = {m: _name(images[0].path) for m, images in exam.files.items()}
        found.runs |= {f"{exam.name} {m}": [_name(i.path) for i in v] for m, v in exam.files.items() if len(v) > 1}
        found.others |= {_name(i.path) for i in exam.others}
        found.unknown |= {_name(i.path) for i in exam.unknown}
    return found


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
