"""The commands `atlas`, `simulate` and `transplant`."""

from __future__ import annotations

import argparse
import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

from app.cli.argument_types import natural, path, positive
from app.core.config import WEIGHTS_DIR
from app.core.errors import ExitCode, UsageError, WeightsError

log = logging.getLogger(__name__)

#: Least and largest factor of a lesion's volume.
_LEAST, _LARGEST = 0.1, 10.0
_ABOUT_TRANSPLANT = (
    "Puts each lesion, as it was scanned, into the exam of another patient, at the same place, and writes four "
    "sequences and -seg in BraSyn's layout. They are for training and research, never for care."
)
_ABOUT = (
    "Writes complete synthetic exams in BraSyn's layout: <ID>/<ID>-t1c.nii.gz, -t1n, -t2f, -t2w and -seg. Every header "
    "and record says that they are synthetic. They are for training and research, never for care."
)


def add_atlas(commands: Any) -> None:
    """Declare the command `atlas`."""
    p = commands.add_parser(
        "atlas",
        help="average complete subjects, lesions left out, with tissue probabilities",
        description="Averages the complete subjects of a folder that have a segmentation.",
    )
    p.add_argument("--data", type=path, required=True, metavar="DIR", help="folder of complete subjects")
    p.add_argument("--output", type=path, required=True, metavar="FILE", help="gets the atlas, as safetensors")
    p.add_argument(
        "--voxel", type=positive, metavar="MM", help="edge of its voxels; default: that of the subjects, a larger file"
    )
    p.set_defaults(command=_atlas)


def _atlas(options: argparse.Namespace) -> int:
    from app.core.atomic_io import save_bytes
    from app.inference.simulation.build import build_atlas

    if options.output.is_dir() or not options.output.parent.is_dir():
        raise UsageError(f"--output {options.output} must be a file in a folder that exists.")
    atlas = build_atlas(options.data).on_voxels(options.voxel or 0.0)
    save_bytes(atlas.to_bytes(), options.output)
    log.info("Written: %s, the average of %d subjects.", options.output, atlas.subjects)
    return ExitCode.OK


def add_simulate(commands: Any) -> None:
    """Declare the command `simulate`."""
    p = commands.add_parser("simulate", help="make complete synthetic exams from lesion masks", description=_ABOUT)
    p.add_argument("--output", type=path, required=True, metavar="DIR", help="gets the exams and simulated.json")
    p.add_argument(
        "--lesions",
        type=path,
        metavar="PATH",
        help="a folder of <ID>-seg.nii.gz, one mask, or label maps (.npz, .npz.xz); default: those of --brains",
    )
    p.add_argument("--brains", type=path, metavar="DIR", help="exams whose brains get the lesions; default: the atlas")
    p.add_argument("--exchange", action="store_true", help="each lesion goes into a brain of another name")
    p.add_argument("--count", type=positive, metavar="N", help="how many exams; default: one per lesion")
    p.add_argument(
        "--scale",
        type=factors,
        default=(1.0, 1.0),
        metavar="A..B",
        help="factor of a lesion's volume, drawn between both, such as 0.5..2; or one number",
    )
    p.add_argument("--mirror", action="store_true", help="mirror half of the lesions, left to right")
    p.add_argument("--move", action="store_true", help="move each lesion to another place in the brain")
    p.add_argument(
        "--contrast",
        type=factors,
        default=(1.0, 1.0),
        metavar="A..B",
        help="factor of how much a lesion stands out of the brain, drawn for each sequence, such as 0.2..1.3",
    )
    p.add_argument("--seed", type=natural, default=0, help="of all that is drawn, and in the names; default: 0")
    p.add_argument("--confidence", type=path, metavar="DIR", help="gets a confidence map of every sequence")
    p.add_argument("--pictures", type=path, metavar="DIR", help="gets a picture of every exam")
    p.add_argument("--weights", type=path, default=WEIGHTS_DIR, metavar="DIR", help="folder with manifest.json")
    p.add_argument("--model", metavar="NAME", help="a cgsamr of `info`; default: the only one, or the only paired one")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda[:N]")
    p.set_defaults(command=_simulate)


def add_transplant(commands: Any) -> None:
    """Declare the command `transplant`."""
    p = commands.add_parser(
        "transplant", help="put scanned lesions into the exams of other patients", description=_ABOUT_TRANSPLANT
    )
    p.add_argument(
        "--lesions",
        type=path,
        required=True,
        metavar="PATH",
        help="a file of lesion patches (.npz, .npz.xz), or a folder of complete exams with <ID>-seg.nii.gz",
    )
    p.add_argument(
        "--data", type=path, required=True, metavar="DIR", help="complete exams with <ID>-seg.nii.gz that receive them"
    )
    p.add_argument("--output", type=path, required=True, metavar="DIR", help="gets the exams and simulated.json")
    p.add_argument("--count", type=positive, metavar="N", help="how many exams; default: one per lesion")
    p.add_argument("--seed", type=natural, default=0, help="of all that is drawn, and in the names; default: 0")
    p.add_argument("--pictures", type=path, metavar="DIR", help="gets a picture of every exam")
    p.set_defaults(command=_transplant)


def factors(text: str) -> tuple[float, float]:
    """Take a factor, or two with two points between; each from 0.1 to 10."""
    try:
        values = [float(part) for part in text.split("..")]
    except ValueError:
        values = []
    if len(values) not in (1, 2) or values != sorted(values) or not all(_LEAST <= v <= _LARGEST for v in values):
        raise argparse.ArgumentTypeError(f"{text!r} is no factor from {_LEAST:g} to {_LARGEST:g}, nor two as 0.5..2")
    return values[0], values[-1]


def _simulate(options: argparse.Namespace) -> int:
    from app.inference.simulation.opening import open_simulator
    from app.inference.simulation.run import SimulationOptions, WrittenExam, simulate

    options.lesions = options.lesions or options.brains
    if options.lesions is None:
        raise UsageError("nothing says which lesions: give --lesions, or exams with segmentations by --brains.")
    model = open_simulator(options.weights, options.model, options.device)
    if options.confidence is not None and not model.simulator.has_confidence:
        raise WeightsError(f"model {model.identity.name!r} knows no confidence; leave out --confidence.")
    wanted = SimulationOptions(**{f.name: getattr(options, f.name) for f in fields(SimulationOptions)})

    def show(exam: WrittenExam) -> None:
        if options.pictures is not None:
            _draw(exam, options.pictures)

    records = simulate(wanted, model.simulator, model.identity, model.taught_by, show)
    log.info("Written to %s: %d synthetic exam%s.", options.output, len(records), "" if len(records) == 1 else "s")
    return ExitCode.OK


def _transplant(options: argparse.Namespace) -> int:
    from app.inference.simulation.transplants import TransplantOptions, WrittenTransplant, transplant_lesions

    wanted = TransplantOptions(options.lesions, options.data, options.output, options.count, options.seed)

    def show(exam: WrittenTransplant) -> None:
        if options.pictures is not None:
            _draw(exam, options.pictures)

    records = transplant_lesions(wanted, show)
    log.info("Written to %s: %d synthetic exam%s.", options.output, len(records), "" if len(records) == 1 else "s")
    return ExitCode.OK


def _draw(exam: Any, folder: Path) -> None:
    from app.core.atomic_io import save_bytes
    from app.report.figures import segmentation_picture

    folder.mkdir(parents=True, exist_ok=True)
    title = f"SYNTHETIC exam {exam.record.name}: lesion of {exam.record.lesion}"
    image = segmentation_picture(exam.volumes, exam.labels, title)
    save_bytes(image, folder / f"{exam.record.name}.png")
