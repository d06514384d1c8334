"""The command for an exam as scanned."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from app.cli.argument_types import EXIT_CODES, path
from app.cli.options import add_options, given
from app.core.atomic_io import save_bytes
from app.core.config import ModelOptions, NamingOptions, RuntimeOptions
from app.core.constants import MODALITIES, Modality
from app.core.errors import CaseError, ExitCode, UsageError

if TYPE_CHECKING:
    from app.inference.clinic.pipeline import CompletedExam

log = logging.getLogger(__name__)

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
    p.add_argument("study", type=path, metavar="STUDY", help="folder of one exam's NIfTI files")
    p.add_argument("out", type=path, metavar="OUT", nargs="?", help="folder of the result; not needed for --check")
    p.add_argument("--make", choices=get_args(Modality), help="the sequence to make; default: the one that lacks")
    p.add_argument("--reference", choices=get_args(Modality), help="whose grid the result has; default: as synthesize")
    for modality in MODALITIES:
        p.add_argument(f"--{modality}", type=path, metavar="FILE", help=f"the {modality}, whatever its name")
    p.add_argument("--mask", type=path, metavar="FILE", help="the brain, on the grid of a sequence; default: found")
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
    name, files = _files_of(options)
    if options.check:
        return _check(files, options)
    from app.inference.clinic.pipeline import complete_exam
    from app.inference.clinic.scans import choose_target
    from app.inference.synthesizer import Synthesizer

    target = choose_target(files, options.make)
    image = options.out / f"{name}-{target}.nii.gz"
    if image.exists() and not options.overwrite:
        log.info("%s is there already, kept (--overwrite makes it again).", image)
        return ExitCode.OK
    synthesizer = Synthesizer.from_options(
        ModelOptions(**given(options, ModelOptions)), RuntimeOptions(**given(options, RuntimeOptions))
    )
    done = complete_exam(files, synthesizer.model, target=target, reference=options.reference, mask=options.mask)
    for warning in done.warnings:
        log.warning("%s", warning)
    _write(name, done, synthesizer.model.identity.name, options.out)
    log.info("%s: %s made from %s on the grid of %s.", name, target, ", ".join(done.aligned), done.reference)
    return ExitCode.OK


def _files_of(options: argparse.Namespace) -> tuple[str, dict[Modality, Path]]:
    """Find the one exam of a study, and its file per sequence.

    Raises:
        UsageError: there is none, or more than one.
        CaseError: two files are taken for one sequence, or one that is there is not understood.
    """
    from app.data.discovery import scan

    asked: dict[Modality, Path] = {m: f for m in MODALITIES if (f := getattr(options, m)) is not None}
    naming = NamingOptions(**given(options, NamingOptions))
    exams = scan(options.study, exclude=[options.out] if options.out else [], naming=naming)
    cases = [case for case in exams.cases if case.files or case.runs]
    if len(cases) > 1 and len(asked) < 2:
        names = ", ".join(case.subject for case in cases[:5])
        raise UsageError(f"{options.study} holds {len(cases)} exams ({names}); give the folder of one of them.")
    found = cases[0] if len(cases) == 1 else None
    files = {**(found.files if found else {}), **asked}
    if not files:
        notes = f" {exams.notes[0]}" if exams.notes else ""
        raise UsageError(
            f"{options.study} holds no sequence that is understood; name files with --t1n and so on.{notes}"
        )
    if found is not None:
        unclear = [text for m, text in found.runs.items() if m not in asked]
        # What is not understood may be the very sequence that seems to lack.
        named = [str(file) for file in asked.values()]
        doubts = [text for text in found.doubts if not any(file in text for file in named)]
        unclear += [] if len(files) == len(MODALITIES) else doubts
        if unclear:
            raise CaseError(unclear[0])
    return (found.subject if found else options.study.resolve().name), files


def _check(files: Mapping[Modality, Path], options: argparse.Namespace) -> int:
    """Print what each file is taken for, from headers alone."""
    from app.data.nifti_reader import read_grid
    from app.inference.clinic.limits import LEAST_SLICES
    from app.inference.clinic.scans import check_orientation, choose_target

    for modality, file in files.items():
        grid = read_grid(file, LEAST_SLICES)
        check_orientation(grid)
        print(f"{modality}  {file}  {grid.describe()}")  # noqa: T201
    complete = len(files) == len(MODALITIES) and options.make is None
    wanted = "nothing, unless --make names it" if complete else choose_target(files, options.make)
    print(f"to make: {wanted}")  # noqa: T201
    return ExitCode.OK


def _write(name: str, done: CompletedExam, model: str, out: Path) -> None:
    """Write image, record and picture; the image last, since the next run looks for it."""
    from app.data.nifti_writer import encode_image
    from app.report.figures import clinic_picture

    out.mkdir(parents=True, exist_ok=True)
    stem = f"{name}-{done.target}"
    title = f"{name}: {model}, on the grid of {done.reference}"
    save_bytes(clinic_picture(done.aligned, done.brain, done.target, done.synthesis, title), out / f"{stem}.png")
    record = {**done.record, "model": model, "warnings": list(done.warnings)}
    save_bytes((json.dumps(record, indent=2) + "\n").encode(), out / f"{stem}.json")
    save_bytes(encode_image(done.image), out / f"{stem}.nii.gz")
