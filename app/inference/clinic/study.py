"""An exam as it lies on disk, DICOM or NIfTI: which file or series is which sequence, before anything is decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from app.core.config import NamingOptions
from app.core.constants import MODALITIES, Modality
from app.core.errors import CaseError, UsageError
from app.data.cases import Case
from app.data.discovery import scan
from app.data.file_tree import images_below
from app.data.naming.names import parse_name
from app.data.nifti_reader import Volume, read_grid
from app.dicom.geometry import LEAST_SLICES
from app.dicom.selection import NO_RULES, SeriesRules, choose, names_of, of_study
from app.dicom.series import Series, find_series, geometry_of, read_series
from app.inference.clinic.scans import check_header, read_sequence


@dataclass(frozen=True)
class Study:
    """Hold what an exam has, before anything of it is decoded.

    Attributes:
        name: begins the names of the results.
        lines: what each file or series is taken for, and why.
        readers: per sequence what reads it.
        files: per sequence its file; of DICOM the folder of its files.
        warnings: one sentence each.
        series: where the exam is DICOM.
    """

    name: str
    lines: tuple[str, ...]
    readers: Mapping[Modality, Callable[[], Volume]]
    files: Mapping[Modality, Path]
    warnings: tuple[str, ...] = ()
    series: Mapping[Modality, Series] = field(default_factory=dict)


def open_study(
    folder: Path,
    asked: Mapping[Modality, str] | None = None,
    naming: NamingOptions | None = None,
    exclude: Sequence[Path] = (),
    say: Callable[[str], None] | None = None,
    rules: SeriesRules = NO_RULES,
) -> Study:
    """Find the sequences of one exam, by headers alone.

    Args:
        folder: of DICOM files, however nested, or of NIfTI files.
        asked: per sequence the file, or the number or UID of the series, that the user names.
        naming: what the user says of names of NIfTI files.
        exclude: folders to leave out.
        say: is told each DICOM series before the choice among them may fail.
        rules: how series of DICOM are chosen.

    Raises:
        UsageError: several patients or exams, none, or a series that is not there.
        CaseError: which file is which sequence must be said by a person.
        VolumeError: the slices of a series are no volume, or a header cannot be used.
    """
    asked = asked or {}
    series = find_series(folder, exclude)
    if series:
        found = _dicom_study(folder, of_study(series, rules.study), asked, rules, say)
        apart = [place.resolve() for place in exclude]
        beside = [
            p.name
            for p in images_below(folder)
            if parse_name(p) is not None and not any(p.resolve().is_relative_to(a) for a in apart)
        ]
        note = f"{folder} holds DICOM, so {len(beside)} other images are passed over ({', '.join(beside[:3])})."
        return replace(found, warnings=(*found.warnings, note)) if beside else found
    if rules.study is not None or rules.ignored:
        what = "--ignore" if rules.study is None else "--study-uid"
        raise UsageError(f"{folder} holds no DICOM; leave out {what}.")
    return _nifti_study(folder, asked, naming or NamingOptions(), exclude)


def _dicom_study(
    folder: Path,
    series: Sequence[Series],
    asked: Mapping[Modality, str],
    rules: SeriesRules,
    say: Callable[[str], None] | None,
) -> Study:
    """Choose the series of a folder of DICOM, and check their slices."""
    names = names_of(series, rules.site)
    lines = tuple(f"{names[s.uid].sequence or '-':4} {s.title}: {names[s.uid].why}" for s in series)
    if say is not None:
        for line in lines:
            say(line)
    selection = choose(series, asked, rules)
    for one in selection.series.values():
        geometry_of(one)
    chosen = tuple(f"{m} is {s.title}" for m, s in selection.series.items())
    readers = {m: partial(read_series, s) for m, s in selection.series.items()}
    files = {m: s.files[0].parent for m, s in selection.series.items()}
    return Study(folder.resolve().name, chosen, readers, files, selection.warnings, selection.series)


def _nifti_study(folder: Path, asked: Mapping[Modality, str], naming: NamingOptions, exclude: Sequence[Path]) -> Study:
    """Find the one exam of a folder of NIfTI files, and its file per sequence."""
    named = {m: Path(text) for m, text in asked.items()}
    exams = scan(folder, exclude=exclude, naming=naming)
    cases = [case for case in exams.cases if case.files or case.runs]
    if len(cases) > 1 and len(named) < 2:
        names = ", ".join(case.subject for case in cases[:5])
        raise UsageError(f"{folder} holds {len(cases)} exams ({names}); give the folder of one of them.")
    found = cases[0] if len(cases) == 1 else None
    files = {**(found.files if found else {}), **named}
    if not files:
        why = f" {exams.notes[0]}" if exams.notes else ""
        raise UsageError(f"{folder} holds no sequence that is understood; name files by --t1n and so on.{why}")
    if found is not None:
        if found.problem is not None:
            raise CaseError(found.problem)
        _check_names(found, named, len(files))
    lines = []
    for modality, file in files.items():
        grid = read_grid(file, LEAST_SLICES)
        check_header(grid)
        lines.append(f"{modality}  {file}  {grid.describe()}")
    name = found.subject if found else folder.resolve().name
    return Study(name, tuple(lines), {m: partial(read_sequence, f) for m, f in files.items()}, files)


def _check_names(case: Case, asked: Mapping[Modality, Path], count: int) -> None:
    """Refuse names that leave open which file is which.

    Raises:
        CaseError: two files are taken for one sequence, or one that is there is not understood.
    """
    unclear = [text for m, text in case.runs.items() if m not in asked]
    named = [str(file) for file in asked.values()]
    # What is not understood may be the very sequence that seems to lack.
    doubts = [text for text in case.doubts if not any(file in text for file in named)]
    unclear += [] if count == len(MODALITIES) else doubts
    if unclear:
        raise CaseError(unclear[0])
