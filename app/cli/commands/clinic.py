"""The command for an exam as scanned."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from app.cli.argument_types import EXIT_CODES, path
from app.cli.options import add_options, given
from app.core.config import ClinicConfig, ModelOptions, NamingOptions, RuntimeOptions
from app.core.constants import MODALITIES, Modality
from app.core.errors import ExitCode, UsageError
from app.dicom.destination import Destination

if TYPE_CHECKING:
    from app.inference.clinic.study import Study

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
    p.add_argument(
        "--ignore", metavar="SERIES", action="append", default=[], help="a series of DICOM that is none of the four"
    )
    p.add_argument("--id", metavar="ID", help="begins the results' names; default: the exam's or its folder's name")
    p.add_argument("--mask", type=path, metavar="FILE", help="the brain, on the grid of a sequence; default: found")
    p.add_argument("--mask-of", choices=get_args(Modality), help="the sequence that --mask was drawn on")
    p.add_argument("--study-uid", metavar="UID", help="the study, where STUDY holds several; its last digits will do")
    add_options(p, ClinicConfig, "dicom", "send", "stamp", "view", "series_names", "allow_other_study")
    p.add_argument("--check", action="store_true", help="say which file is taken for what, from headers alone")
    p.add_argument("--overwrite", action="store_true", help="make a result again that is there")
    add_options(p, ModelOptions, "weights_dir", "model", "min_expected_ssim")
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
    if options.id is not None and not _ID.fullmatch(options.id):
        raise UsageError(f"--id {options.id!r} can be no file's name; use letters, digits, '.', '_' and '-'.")
    values = given(options, ClinicConfig)
    send_to = Destination.parse(values["send"]) if "send" in values else None
    study = _open(options, print if options.check else None)
    return _check(study, options) if options.check else _complete(study, options, send_to)


def _open(options: argparse.Namespace, say: Callable[[str], None] | None) -> Study:
    from app.dicom.selection import SeriesRules
    from app.dicom.site_names import read_site_names
    from app.inference.clinic.study import open_study

    asked: dict[Modality, str] = {m: text for m in MODALITIES if (text := getattr(options, m)) is not None}
    naming = NamingOptions(**given(options, NamingOptions))
    apart = [options.out] if options.out else []
    values = given(options, ClinicConfig)
    site, across = read_site_names(values.get("series_names")), values.get("allow_other_study", False)
    rules = SeriesRules(tuple(options.ignore), options.study_uid, across, site)
    study = open_study(options.study, asked, naming, apart, say, rules)
    return study if options.id is None else replace(study, name=options.id)


def _check(study: Study, options: argparse.Namespace) -> int:
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


def _complete(study: Study, options: argparse.Namespace, send_to: Destination | None) -> int:
    from app.batch.clinic.completion import Wish, check_wish, complete_study
    from app.batch.clinic.results import Forms
    from app.inference.clinic.scans import choose_target
    from app.inference.synthesizer import Synthesizer

    values = given(options, ClinicConfig)
    dicom, stamp = values.get("dicom", False) or send_to is not None, values.get("stamp", False)
    if stamp and not dicom:
        raise UsageError("--stamp marks a derived series; give --dicom or --send as well.")
    forms = Forms(dicom, values.get("view", False), stamp)
    if options.mask_of is not None and options.mask is None:
        raise UsageError("--mask-of says whose grid a mask is on; give --mask as well.")
    wish = Wish(options.make, options.reference, options.mask, options.mask_of, forms, send_to, options.overwrite)
    check_wish(study, wish)
    choose_target(study.readers, wish.target)
    synthesizer = Synthesizer.from_options(
        ModelOptions(**given(options, ModelOptions)), RuntimeOptions(**given(options, RuntimeOptions))
    )
    complete_study(study, synthesizer.model, wish, options.out)
    return ExitCode.OK
