"""The command for an exam as scanned."""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from app import __version__
from app.cli.argument_types import EXIT_CODES, path
from app.cli.options import add_options, given
from app.core.atomic_io import save_bytes
from app.core.config import ModelOptions, NamingOptions, RuntimeOptions
from app.core.constants import MODALITIES, Modality
from app.core.errors import CaseError, ExitCode, UsageError

if TYPE_CHECKING:
    from app.data.cases import Case
    from app.data.nifti_reader import Volume
    from app.dicom.series import Series
    from app.inference.clinic.pipeline import CompletedExam
    from app.inference.models import Model

log = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}")
_ABOUT = (
    "Completes one exam as scanned: sequences on any grids, with skull, of a patient who moved. They are aligned, the "
    "brain is found, and the result comes back in the grid of one of them. OUT gets <ID>-<sequence>.nii.gz, a record "
    "(JSON) and a picture to look at first."
)


def add_clinic(commands: Any) -> None:
    """Declare the command `clinic`."""
    p = commands.add_parser(
        "clinic", help="complete an exam as scanned: any grids, skull on", description=_ABOUT, epilog=EXIT_CODES
    )
    p.add_argument("study", type=path, metavar="STUDY", help="folder of one exam: DICOM of any nesting, or NIfTI files")
    p.add_argument("out", type=path, metavar="OUT", nargs="?", help="folder of the result; not needed for --check")
    p.add_argument("--make", choices=get_args(Modality), help="the sequence to make; default: the one that lacks")
    p.add_argument("--reference", choices=get_args(Modality), help="whose grid the result has; default: as synthesize")
    for modality in MODALITIES:
        what = f"the {modality}: a file; of DICOM the number or UID of a series"
        p.add_argument(f"--{modality}", metavar="FILE|SERIES", help=what)
    p.add_argument("--id", metavar="ID", help="begins the results' names; default: the exam's or its folder's name")
    p.add_argument("--mask", type=path, metavar="FILE", help="the brain, on the grid of a sequence; default: found")
    p.add_argument("--dicom", action="store_true", help="write a derived DICOM series as well; of a DICOM study alone")
    p.add_argument("--check", action="store_true", help="say which file is taken for what, from headers alone")
    p.add_argument("--overwrite", action="store_true", help="make a result again that is there")
    add_options(p, ModelOptions, "weights_dir", "model")
    add_options(p, RuntimeOptions, "device", "precision")
    add_options(p, NamingOptions)
    p.set_defaults(command=_clinic)


def _clinic(options: argparse.Namespace) -> int:
    if options.out is None and not options.check:
        raise UsageError("give the folder of the result after that of the study, or --check.")
    if options.out is not None and options.out.resolve() == options.study.resolve():
        raise UsageError(f"the result's folder {options.out} is the study; give another one.")
    if not options.study.is_dir():
        raise UsageError(f"the study {options.study} is no folder; give the folder of one exam.")
    from app.dicom.series import find_series

    series = find_series(options.study)
    study = _dicom_study(series, options) if series else _nifti_study(options)
    if options.id is not None:
        if not _ID.fullmatch(options.id):
            raise UsageError(f"--id {options.id!r} can be no file's name; use letters, digits, '.', '_' and '-'.")
        study = replace(study, name=options.id)
    if options.check:
        return _check(study, options)
    return _complete(study, options)


@dataclass(frozen=True)
class _Study:
    """Hold what an exam has, before anything of it is decoded.

    Attributes:
        name: begins the names of the results.
        lines: what each file or series is taken for, and why.
        readers: per sequence what reads it.
        warnings: one sentence each.
        series: where the exam is DICOM.
    """

    name: str
    lines: tuple[str, ...]
    readers: Mapping[Modality, Callable[[], Volume]]
    warnings: tuple[str, ...] = ()
    series: Mapping[Modality, Series] = field(default_factory=dict)


def _check(study: _Study, options: argparse.Namespace) -> int:
    """Print what each sequence is taken for, from headers alone."""
    from app.inference.clinic.scans import choose_target

    for line in study.lines:
        print(line)  # noqa: T201
    complete = len(study.readers) == len(MODALITIES) and options.make is None
    wanted = "nothing, unless --make names it" if complete else choose_target(study.readers, options.make)
    print(f"to make: {wanted}")  # noqa: T201
    for warning in study.warnings:
        log.warning("%s", warning)
    return ExitCode.OK


def _complete(study: _Study, options: argparse.Namespace) -> int:
    from app.inference.clinic.pipeline import complete_exam
    from app.inference.clinic.scans import choose_target
    from app.inference.synthesizer import Synthesizer

    if options.dicom and not study.series:
        raise UsageError(f"{options.study} holds no DICOM, so no series can be derived from it; leave out --dicom.")
    target = choose_target(study.readers, options.make)
    synthesizer = Synthesizer.from_options(
        ModelOptions(**given(options, ModelOptions)), RuntimeOptions(**given(options, RuntimeOptions))
    )
    sequences = {m: read() for m, read in study.readers.items() if m != target}
    request = _request_of(sequences, synthesizer.model.model_for(target), options)
    places = _Places(options.out, f"{study.name}-{target}")
    if not options.overwrite and _is_there(places, request, options.dicom):
        log.info("%s is there already, kept (--overwrite makes it again).", places.image)
        return ExitCode.OK
    done = complete_exam(sequences, synthesizer.model, target=target, reference=options.reference, mask=options.mask)
    for warning in (*study.warnings, *done.warnings):
        log.warning("%s", warning)
    _write(study, done, request, places, options.dicom)
    log.info("%s: %s made from %s on the grid of %s.", study.name, target, ", ".join(done.aligned), done.reference)
    return ExitCode.OK


@dataclass(frozen=True)
class _Places:
    """Name the files of a result.

    Attributes:
        stem: begins their names.
    """

    folder: Path
    stem: str

    @property
    def image(self) -> Path:
        return self.folder / f"{self.stem}.nii.gz"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.stem}.json"

    @property
    def picture(self) -> Path:
        return self.folder / f"{self.stem}.png"

    @property
    def series(self) -> Path:
        return self.folder / f"{self.stem}-dicom"


def _request_of(sequences: Mapping[Modality, Volume], model: Model, options: argparse.Namespace) -> dict[str, Any]:
    """Tell all that a result depends on, so that a later run knows whether it is the same."""
    from app.data.nifti_reader import file_sha256

    return {
        "inputs": {m: volume.sha256 for m, volume in sequences.items()},
        "reference": options.reference,
        "mask": None if options.mask is None else file_sha256(options.mask),
        "model": model.identity.refined_by(None if model.refiner is None else model.refiner.identity),
    }


def _is_there(places: _Places, request: Mapping[str, Any], dicom: bool) -> bool:
    """Tell whether the result of just this request is there.

    Raises:
        UsageError: another one has its name: perhaps another patient's.
    """
    if not places.image.exists():
        return False
    if _record_at(places.record).get("request") != request:
        raise UsageError(
            f"{places.image} was made from other inputs or in another way; --overwrite makes it again, --id or another "
            "folder keeps both."
        )
    return not dicom or places.series.is_dir()


def _record_at(path: Path) -> dict[str, Any]:
    """Read an earlier record; empty where there is none."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _asked(options: argparse.Namespace) -> dict[Modality, str]:
    return {m: text for m in MODALITIES if (text := getattr(options, m)) is not None}


def _dicom_study(series: Sequence[Series], options: argparse.Namespace) -> _Study:
    """Choose the series of a folder of DICOM, and check their slices.

    Raises:
        UsageError, CaseError: as `app.dicom.selection.choose`.
        VolumeError: the slices of one are no volume.
    """
    from app.dicom.selection import choose
    from app.dicom.series import geometry_of, read_series

    lines = tuple(f"{s.name.sequence or '-':4} {s.title}: {s.name.why}" for s in series)
    if options.check:
        for line in lines:
            print(line)  # noqa: T201
        lines = ()
    selection = choose(series, _asked(options))
    for one in selection.series.values():
        geometry_of(one)
    chosen = tuple(f"{m} is {s.title}" for m, s in selection.series.items())
    readers = {m: partial(read_series, s) for m, s in selection.series.items()}
    name = options.study.resolve().name
    return _Study(name, (*lines, *chosen), readers, selection.warnings, selection.series)


def _nifti_study(options: argparse.Namespace) -> _Study:
    """Find the one exam of a folder of NIfTI files, and its file per sequence.

    Raises:
        UsageError: there is none, or more than one.
        CaseError: two files are taken for one sequence, or one that is there is not understood.
        VolumeError: a header cannot be used.
    """
    from app.data.discovery import scan
    from app.data.nifti_reader import read_grid
    from app.dicom.geometry import LEAST_SLICES
    from app.inference.clinic.scans import check_header, read_sequence

    asked = {m: Path(text) for m, text in _asked(options).items()}
    naming = NamingOptions(**given(options, NamingOptions))
    exams = scan(options.study, exclude=[options.out] if options.out else [], naming=naming)
    cases = [case for case in exams.cases if case.files or case.runs]
    if len(cases) > 1 and len(asked) < 2:
        names = ", ".join(case.subject for case in cases[:5])
        raise UsageError(f"{options.study} holds {len(cases)} exams ({names}); give the folder of one of them.")
    found = cases[0] if len(cases) == 1 else None
    files = {**(found.files if found else {}), **asked}
    if not files:
        why = f" {exams.notes[0]}" if exams.notes else ""
        raise UsageError(f"{options.study} holds no sequence that is understood; name files by --t1n and so on.{why}")
    if found is not None:
        if found.problem is not None:
            raise CaseError(found.problem)
        _check_names(found, asked, len(files))
    lines = []
    for modality, file in files.items():
        grid = read_grid(file, LEAST_SLICES)
        check_header(grid)
        lines.append(f"{modality}  {file}  {grid.describe()}")
    name = found.subject if found else options.study.resolve().name
    return _Study(name, tuple(lines), {m: partial(read_sequence, f) for m, f in files.items()})


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


def _write(study: _Study, done: CompletedExam, request: Mapping[str, Any], places: _Places, dicom: bool) -> None:
    """Write series, picture, record and image; the image last, since the next run looks for it."""
    from app.data.nifti_writer import encode_image
    from app.report.figures import clinic_picture

    places.folder.mkdir(parents=True, exist_ok=True)
    record = {**done.record, "request": request, "warnings": [*study.warnings, *done.warnings]}
    before = _record_at(places.record)
    # The same request has the moment of its first result, so that UIDs stay.
    same = before.get("request") == request and "made" in before
    record["made"] = before["made"] if same else datetime.now().astimezone().isoformat(timespec="seconds")
    if dicom:
        record["dicom"] = _write_series(study, done, record, places.series)
    title = f"{study.name}: {record['model']}, on the grid of {done.reference}"
    save_bytes(clinic_picture(done.aligned, done.brain, done.target, done.synthesis, title), places.picture)
    save_bytes((json.dumps(record, indent=2) + "\n").encode(), places.record)
    save_bytes(encode_image(done.image), places.image)


def _write_series(study: _Study, done: CompletedExam, record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write the derived series into a folder of its own, whole or not at all; tell its files."""
    import numpy as np

    from app.dicom.derived import Made, derived_series

    reference = study.series[done.reference]
    made = Made(
        target=done.target,
        values=np.asarray(done.image.dataobj, dtype=np.float32),
        affine=np.asarray(done.image.affine, dtype=np.float64),
        model=f"{record['model']} {record['model_sha256'][:8]}",
        version=__version__,
        moment=datetime.fromisoformat(record["made"]),
    )
    files = derived_series(made, reference, [study.series[m] for m in done.aligned])
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for number, content in enumerate(files, start=1):
        save_bytes(content, part / f"{number:04d}.dcm")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return {"folder": folder.name, "files": len(files), "reference_series": reference.uid}
