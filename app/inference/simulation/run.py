"""Write simulated exams: what is planned for each, its files, and the record of all."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app import __version__
from app.core.atomic_io import save_bytes
from app.core.constants import MODALITIES, Modality
from app.core.errors import CaseError, UsageError
from app.core.json_text import readable_json
from app.core.types import MaskArray, VolumeArray
from app.data.cases import Case
from app.data.discovery import scan
from app.data.labels import load_labels
from app.data.loading import load_complete
from app.data.segmentations import find_segmentations
from app.inference.simulation.atlas import Atlas, Frame, frame_of
from app.inference.simulation.exam_files import FEW_LEVELS, LEVELS, RECORD, save_exam
from app.inference.simulation.lesions import Labels, Lesion, open_lesions
from app.inference.simulation.manipulation import (
    change_contrast,
    inside_share,
    mirror_lesion,
    move_lesion,
    scale_lesion,
)
from app.inference.simulation.own_tissue import tissue_of_exam
from app.inference.simulation.simulator import ExamSimulator, SimulatedVolumes
from app.preprocessing.foreground import bounding_box, vote_foreground
from app.registry.identity import Identity

log = logging.getLogger(__name__)

#: Share of a lesion that must lie in the brain.
_INSIDE: Final = 0.5


@dataclass(frozen=True)
class SimulationOptions:
    """State what is made.

    Attributes:
        lesions: a folder of masks, a mask, or a file of label maps.
        output: gets `<ID>/<ID>-<sequence>.nii.gz`, `-seg.nii.gz`, and the record.
        brains: folder of complete exams whose brains' outlines are used; the atlas's if not given.
        exchange: whether each lesion goes into a brain of another name; else into that of its own.
        count: how many exams; one per lesion if not given.
        scale: least and largest factor of a lesion's volume.
        mirror: whether half of the lesions are mirrored; move: whether they are moved.
        contrast: least and largest factor of how much a lesion stands out, drawn for each sequence.
        seed: decides every random number.
        confidence: gets a map per sequence; none are written if not given.
    """

    lesions: Path
    output: Path
    brains: Path | None = None
    exchange: bool = False
    count: int | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    mirror: bool = False
    move: bool = False
    contrast: tuple[float, float] = (1.0, 1.0)
    seed: int = 0
    confidence: Path | None = None


@dataclass(frozen=True)
class Brain:
    """Hold the outline of a brain: bool on the frame's grid.

    Attributes:
        tissue: finds the brain's own tissue, on its box; None for the atlas's.
    """

    name: str
    mask: MaskArray
    frame: Frame
    tissue: Callable[[], NDArray[np.uint8]] | None = None


@dataclass(frozen=True)
class ExamRecord:
    """Record how an exam was made.

    Attributes:
        inside: share of the lesion that lay in the brain; what did not was cut off.
        scale: factor of its volume; mirrored, shift: what was done besides, shift in voxels along L, P, S.
        contrast: per sequence, the factor of how much it stands out.
        stripes: per sequence the stripe ratio as stacked, and as written.
    """

    name: str
    lesion: str
    brain: str
    inside: float
    scale: float = 1.0
    mirrored: bool = False
    shift: tuple[int, int, int] = (0, 0, 0)
    contrast: dict[str, float] = field(default_factory=dict)
    stripes: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)


@dataclass(frozen=True)
class WrittenExam:
    """Hold an exam that was written, for a picture."""

    record: ExamRecord
    volumes: dict[Modality, VolumeArray]
    labels: Labels


def simulate(
    options: SimulationOptions,
    simulator: ExamSimulator,
    model: Identity,
    taught_by: Collection[str] = (),
    show: Callable[[WrittenExam], None] = lambda _: None,
) -> list[ExamRecord]:
    """Write simulated exams and their record.

    Every lesion is looked at before anything is written.

    Args:
        taught_by: names of the subjects that the model learnt from, for the record.
        show: is given each exam once it is written.

    Raises:
        UsageError: a lesion or a brain cannot be used, or the output holds or is an input.
        CaseError: the network makes a constant image.
        OutputError: nothing of an exam that could not be written is kept.
    """
    _check_places(options)
    lesions = open_lesions(options.lesions)
    if options.brains is None and simulator.sees_own_tissue:
        log.warning("Exams show an average brain, smooth and without folds; --brains gives them those of your exams.")
    brains = list(_brains(options, simulator.atlas))
    plan = [
        (name, *pair)
        for name, pair in zip(_names(options, len(lesions)), _pairs(options, lesions, brains), strict=False)
    ]
    for name, _, _ in plan:
        if (options.output / name).exists():
            raise UsageError(f"{options.output} holds {name} already; give another --output or another --seed.")
    for lesion, brain in {(lesion.name, brain.name): (lesion, brain) for _, lesion, brain in plan}.values():
        _check_inside(lesion.load(brain.frame), brain, lesion)
    options.output.mkdir(parents=True, exist_ok=True)
    records = []
    for number, (name, lesion, brain) in enumerate(plan):
        random = np.random.default_rng([options.seed, number])
        exam = _one(name, lesion, brain, options, simulator, model, random)
        records.append(exam.record)
        save_bytes(readable_json(_form(options, model, taught_by, records)), options.output / RECORD)
        show(exam)
        log.info("%s: lesion of %s in the brain of %s", name, lesion.name, brain.name)
    return records


def _one(
    name: str,
    lesion: Lesion,
    brain: Brain,
    options: SimulationOptions,
    simulator: ExamSimulator,
    model: Identity,
    random: np.random.Generator,
) -> WrittenExam:
    labels, record = _changed(
        lesion.load(brain.frame), ExamRecord(name, lesion.name, brain.name, 1.0), brain, options, random
    )
    own = brain.tissue() if simulator.sees_own_tissue and brain.tissue is not None else None
    if own is not None and not own.any():
        log.warning("%s: white and grey matter of %s cannot be told apart; the average brain's stand in.", name,
                    brain.name)  # fmt: skip
        own = None
    made = simulator.run(brain.mask, labels, own)
    stripes: dict[str, tuple[float | None, float | None]] = {
        m: _rounded(pair) for m, pair in zip(MODALITIES, made.stripes, strict=True)
    }
    contrast = {m: _drawn(options.contrast, random) for m in MODALITIES}
    images = [change_contrast(i, labels, brain.mask, contrast[m]) for m, i in zip(MODALITIES, made.images, strict=True)]
    volumes = _restored(images, brain.mask, simulator.atlas)
    if flat := [m for m, v in volumes.items() if np.ptp(v[brain.mask]) == 0]:
        raise CaseError(f"model {model.name!r} makes no {flat[0]} of {lesion.place}: it is constant; train it longer.")
    _write(options, name, volumes, labels, made, brain.frame, model)
    shown: dict[str, float] = {m: round(factor, 4) for m, factor in contrast.items()}
    return WrittenExam(replace(record, stripes=stripes, contrast=shown), volumes, labels)


def _changed(
    labels: Labels, record: ExamRecord, brain: Brain, options: SimulationOptions, random: np.random.Generator
) -> tuple[Labels, ExamRecord]:
    """Scale, mirror and move a lesion as drawn, and cut off what lies outside the brain."""
    factor = _drawn(options.scale, random)
    mirrored = options.mirror and bool(random.random() < 0.5)
    changed = scale_lesion(labels, factor)
    changed = mirror_lesion(changed, brain.mask) if mirrored else changed
    shift = (0, 0, 0)
    if options.move:
        changed, shift = move_lesion(changed, brain.mask, random)
    share = inside_share(changed, brain.mask)
    if share < _INSIDE:
        # A change must not carry a lesion away: without it, the lesion was checked.
        changed, factor, mirrored, shift = labels.copy(), 1.0, False, (0, 0, 0)
        share = inside_share(changed, brain.mask)
    changed[~brain.mask] = 0
    return changed, replace(record, inside=round(share, 4), scale=round(factor, 4), mirrored=mirrored, shift=shift)


def _drawn(limits: tuple[float, float], random: np.random.Generator) -> float:
    """Draw a factor between two, half and twice alike likely."""
    low, high = limits
    return float(np.exp(random.uniform(np.log(low), np.log(high)))) if low < high else low


# ------------------------------------------------------------ plan


def _check_places(options: SimulationOptions) -> None:
    output = options.output.resolve()
    for option, given in (("--lesions", options.lesions), ("--brains", options.brains)):
        if given is None:
            continue
        place = given.resolve()
        if output == place or place in output.parents or (place.is_dir() and output in place.parents):
            raise UsageError(
                f"--output {options.output} and {option} {given} lie in each other; give another --output."
            )
    if options.confidence is not None and output in (
        options.confidence.resolve(),
        *options.confidence.resolve().parents,
    ):
        raise UsageError(f"--confidence {options.confidence} lies in --output; its maps would be taken for exams.")
    if options.exchange and options.brains is None:
        raise UsageError("--exchange needs --brains, the exams among which lesions are exchanged.")


def _names(options: SimulationOptions, lesions: int) -> list[str]:
    return [f"synthetic-{options.seed}-{number:04d}" for number in range(options.count or lesions)]


def _pairs(
    options: SimulationOptions, lesions: Sequence[Lesion], brains: Sequence[Brain]
) -> Iterator[tuple[Lesion, Brain]]:
    """Each lesion in turn, in an order drawn anew for each round, with its brain."""
    random = np.random.default_rng([options.seed, 2**32])
    while True:
        for number in random.permutation(len(lesions)):
            lesion = lesions[int(number)]
            yield lesion, _brain_for(lesion, options, brains, random)


def _brain_for(
    lesion: Lesion, options: SimulationOptions, brains: Sequence[Brain], random: np.random.Generator
) -> Brain:
    if options.brains is None:
        return brains[0]
    fitting = [b for b in brains if (b.name != lesion.name) == options.exchange]
    if not fitting:
        wanted = "another" if options.exchange else "its own"
        raise UsageError(f"{lesion.place} finds no brain of {wanted} name in {options.brains}; "
                         f"{'give more exams' if options.exchange else 'use --exchange'}.")  # fmt: skip
    return fitting[int(random.integers(len(fitting)))]


def _brains(options: SimulationOptions, atlas: Atlas) -> Iterator[Brain]:
    if options.brains is None:
        yield Brain("atlas", atlas.brain_mask, atlas.frame)
        return
    cases = {case.subject: case for case in scan(options.brains).cases}
    masks = find_segmentations(options.brains, list(cases.values()))
    for subject, volumes in load_complete(cases.values()):
        mask = vote_foreground({m: v.data for m, v in volumes.items()})
        start = [side.start for side in bounding_box(mask)]
        tissue = partial(_tissue, cases[subject], masks.get(subject))
        yield Brain(subject, mask, frame_of(mask.shape, volumes["t1n"].grid.lps_affine, start), tissue)


def _tissue(case: Case, segmentation: Path | None) -> NDArray[np.uint8]:
    """Find the tissue of a subject's own brain, read again: of many subjects it would fill the memory."""
    (_, volumes), *_ = load_complete([case])
    arrays = {m: v.data for m, v in volumes.items()}
    labels = load_labels(segmentation, volumes["t1n"].grid, case.subject)
    return tissue_of_exam(arrays, vote_foreground(arrays), labels)


def _check_inside(labels: Labels, brain: Brain, lesion: Lesion) -> None:
    if inside_share(labels, brain.mask) < _INSIDE:
        raise UsageError(f"{lesion.place} lies outside the brain of {brain.name}; give a mask in that brain's space.")


# ------------------------------------------------------------ files


def _restored(images: Sequence[VolumeArray], brain: MaskArray, atlas: Atlas) -> dict[Modality, VolumeArray]:
    """Bring images to the average brightness of a scan; the brain is above 0."""
    volumes: dict[Modality, VolumeArray] = {}
    for m, image, brightest in zip(MODALITIES, images, atlas.brightness, strict=True):
        peak = brightest if brightest >= FEW_LEVELS else LEVELS
        values = np.maximum(np.rint((image + 1) / 2 * peak), 1)
        volumes[m] = np.where(brain, values, 0).astype(np.float32)
    return volumes


def _write(
    options: SimulationOptions,
    name: str,
    volumes: dict[Modality, VolumeArray],
    labels: Labels,
    made: SimulatedVolumes,
    frame: Frame,
    model: Identity,
) -> None:
    beside = {}
    if options.confidence is not None and made.confidence is not None:
        options.confidence.mkdir(parents=True, exist_ok=True)
        beside = {options.confidence / f"{name}-{m}-confidence.nii.gz": c
                  for m, c in zip(MODALITIES, made.confidence, strict=True)}  # fmt: skip
    text = f"SYNTHETIC exam, tetrad {__version__} {model.name} {model.sha256[:12]}"
    save_exam(options.output / name, volumes, labels, frame, text, beside)


def _form(
    options: SimulationOptions, model: Identity, taught_by: Collection[str], records: Sequence[ExamRecord]
) -> dict[str, Any]:
    given = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()}
    return {
        "synthetic": True,
        "tetrad": __version__,
        "model": model.name,
        "sha256": model.sha256,
        "taught_by": sorted(taught_by),
        "options": given,
        "exams": [asdict(record) for record in records],
    }


def _rounded(pair: tuple[float, float]) -> tuple[float | None, float | None]:
    """Round for the record; a ratio that does not exist is none."""
    before, after = (round(v, 3) if math.isfinite(v) else None for v in pair)
    return before, after
