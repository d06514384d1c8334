"""Put lesions as they were scanned into exams of other patients.

Beside `app.inference.simulation.run`, which invents what a lesion looks like. Here every voxel of the lesion was
scanned, in all four sequences at once. So such exams teach which lesions enhance, also where few whole exams are at
hand. The lesion stays at its place: both exams must be in one space, such as BraTS's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app import __version__
from app.core.atomic_io import save_bytes
from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError
from app.core.json_text import readable_json
from app.core.types import MaskArray, VolumeArray
from app.data.cases import Case
from app.data.discovery import scan
from app.data.labels import load_labels
from app.data.loading import load_complete
from app.data.segmentations import find_segmentations
from app.inference.simulation.atlas import Frame, frame_of
from app.inference.simulation.exam_files import FEW_LEVELS, LEVELS, RECORD, save_exam
from app.inference.simulation.lesion_patches import LesionPatch, PlacedPatch, open_patches
from app.inference.simulation.lesions import Labels, same_places
from app.preprocessing.foreground import bounding_box, vote_foreground
from app.preprocessing.normalization import Normalization, measure

log = logging.getLogger(__name__)

#: In voxels: so far from the lesion the patch counts fully, and from there on less; it ends after both.
_WHOLE, _FADING = 6.0, 8.0
#: In voxels: over so many it fades in from its own faces, and from where its patient has no brain.
_FACE, _EDGE = 5.0, 2.0
#: A brain whose own lesion lies in more than this share of the patch is not chosen, unless fewer than so many are left.
_SHARED: Final = 0.02
_LEAST: Final = 3
#: Share of the lesion that must be seen in the exam.
_SEEN: Final = 0.5


@dataclass(frozen=True)
class TransplantOptions:
    """State what is made.

    Attributes:
        lesions: a file of patches, or a folder of complete exams with segmentations.
        data: folder of complete exams with segmentations, which receive them.
        output: gets `<ID>/<ID>-<sequence>.nii.gz`, `-seg.nii.gz`, and the record.
        count: how many exams; one per lesion if not given. More than there are begin anew, with other brains.
        seed: decides every random number.
    """

    lesions: Path
    data: Path
    output: Path
    count: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class TransplantRecord:
    """Record how an exam was made.

    Attributes:
        seen: share of the lesion that is in the exam; the rest lay at the patch's faces or outside the brain.
        shared: share of the patch where the brain had a lesion of its own.
    """

    name: str
    lesion: str
    brain: str
    seen: float
    shared: float


@dataclass(frozen=True)
class WrittenTransplant:
    """Hold an exam that was written, for a picture."""

    record: TransplantRecord
    volumes: dict[Modality, VolumeArray]
    labels: Labels


@dataclass(frozen=True)
class _Host:
    """Where an exam's own lesion lies."""

    case: Case
    mask: Path
    frame: Frame
    box: tuple[slice, ...]
    lesion: MaskArray


def transplant_lesions(
    options: TransplantOptions, show: Callable[[WrittenTransplant], None] = lambda _: None
) -> list[TransplantRecord]:
    """Write exams with the lesions of other patients, and their record.

    Args:
        show: is given each exam once it is written.

    Raises:
        UsageError: a lesion or an exam cannot be used, or the output holds or is an input.
        OutputError: nothing of an exam that could not be written is kept.
    """
    _check_places(options)
    patches, hosts = open_patches(options.lesions), _hosts(options.data)
    count = options.count or len(patches)
    names = [f"transplant-{options.seed}-{number:04d}" for number in range(count)]
    for name in names:
        if (options.output / name).exists():
            raise UsageError(f"{options.output} holds {name} already; give another --output or another --seed.")
    order = np.random.default_rng(options.seed).permutation(len(patches))
    options.output.mkdir(parents=True, exist_ok=True)
    records: list[TransplantRecord] = []
    for number, name in enumerate(names):
        patch = patches[order[number % len(patches)]]
        exam = _one(name, patch, hosts, np.random.default_rng([options.seed, number]), options)
        if exam is None:
            log.warning("%s is left out: less than half of its lesion would be seen in any brain.", patch.place)
            continue
        records.append(exam.record)
        save_bytes(readable_json(_form(options, records)), options.output / RECORD)
        show(exam)
        log.info("%s: lesion of %s in the brain of %s", name, patch.name, exam.record.brain)
    if not records:
        raise UsageError(
            f"no lesion of {options.lesions} can be seen in a brain of {options.data}; both must be in one space."
        )
    return records


def _one(
    name: str, patch: LesionPatch, hosts: Sequence[_Host], random: np.random.Generator, options: TransplantOptions
) -> WrittenTransplant | None:
    others = [h for h in hosts if h.case.subject != patch.name]
    if not others:
        raise UsageError(f"{options.data} holds no exam beside that of {patch.name}; give more exams.")
    placed = patch.load(others[0].frame)
    weight = fading_weight(placed)
    shared = [_shared(h, placed, weight) for h in others]
    free = [n for n, share in enumerate(shared) if share < _SHARED]
    chosen = int(random.choice(free if len(free) >= _LEAST else np.argsort(shared)[:_LEAST]))
    host = others[chosen]
    volumes, labels = _load(host)
    brain = vote_foreground(volumes)
    made, changed = transplant(volumes, labels, brain, placed, weight)
    seen = float((brain[placed.box] & (weight >= 0.5))[placed.labels > 0].mean())
    if seen < _SEEN:
        return None
    text = f"SYNTHETIC exam, tetrad {__version__} lesion of {patch.name} in {host.case.subject}"
    save_exam(options.output / name, made, changed, host.frame, text)
    record = TransplantRecord(name, patch.name, host.case.subject, round(seen, 4), round(shared[chosen], 4))
    return WrittenTransplant(record, made, changed)


# ------------------------------------------------------------ images


def fading_weight(patch: PlacedPatch) -> NDArray[np.float32]:
    """Weigh a patch against the brain that receives it: 1 in the lesion and close by, 0 at its faces and far away.

    Returns:
        float32, the patch's shape.
    """
    from scipy.ndimage import distance_transform_edt

    far = distance_transform_edt(patch.labels == 0)
    weight = np.clip((_WHOLE + _FADING - far) / _FADING, 0, 1)
    for axis, length in enumerate(weight.shape):
        face = np.minimum(np.arange(length), length - 1 - np.arange(length)) / _FACE
        weight = weight * np.clip(face, 0, 1).reshape([-1 if a == axis else 1 for a in range(3)])
    if not patch.brain.all():
        weight = weight * np.clip((distance_transform_edt(patch.brain) - 1) / _EDGE, 0, 1)
    return np.asarray(weight, np.float32)


def transplant(
    volumes: dict[Modality, VolumeArray],
    labels: Labels,
    brain: MaskArray,
    patch: PlacedPatch,
    weight: NDArray[np.float32],
) -> tuple[dict[Modality, VolumeArray], Labels]:
    """Blend a patch into an exam, as bright as that exam's own brain.

    Args:
        volumes: of the exam that receives it, L x P x S, background 0; brain: of that shape.
        weight: that of `fading_weight`.

    Returns:
        Whole numbers above 0 in the brain, and labels: the patch's where it weighs at least half, else the exam's.
    """
    box, share = patch.box, weight * brain[patch.box]
    made: dict[Modality, VolumeArray] = {}
    for m, scores in zip(MODALITIES, patch.images, strict=True):
        own = measure(volumes[m], m, Normalization("volume"))
        image = volumes[m].copy()
        image[box] += share * (scores * np.float32(own.std) + np.float32(own.mean) - image[box])
        peak = float(image[brain].max())
        scale = 1.0 if peak >= FEW_LEVELS else LEVELS / peak
        made[m] = np.where(brain, np.maximum(np.rint(image * scale), 1), 0).astype(np.float32)
    changed = labels.copy()
    changed[box] = np.where(share >= 0.5, patch.labels, changed[box])
    return made, changed


def _shared(host: _Host, patch: PlacedPatch, weight: NDArray[np.float32]) -> float:
    """Find the share of a patch's weight where a brain has a lesion of its own."""
    own = np.zeros(host.frame.shape, bool)
    own[host.box] = host.lesion
    return float(weight[own[patch.box]].sum() / weight.sum())


# ------------------------------------------------------------ exams


def _hosts(data: Path) -> list[_Host]:
    cases = scan(data).cases
    masks, hosts = find_segmentations(data, cases), []
    for case in cases:
        if set(case.grids) != set(MODALITIES):
            continue
        grid = case.grids[MODALITIES[0]]
        labels = load_labels(masks.get(case.subject), grid, case.subject)
        if labels is None or not labels.any():
            log.warning("%s receives no lesion: nobody knows where its own is.", case.subject)
            continue
        box = bounding_box(labels > 0)
        frame = frame_of(grid.lps_shape, grid.lps_affine, (0, 0, 0))
        hosts.append(_Host(case, masks[case.subject], frame, box, labels[box] > 0))
    if not hosts:
        raise UsageError(f"{data} holds no complete exam with a segmentation (<subject>-seg.nii.gz).")
    first = hosts[0].frame
    if odd := [h for h in hosts if h.frame.shape != first.shape or not same_places(h.frame.matrix, first)]:
        raise UsageError(
            f"{odd[0].case.subject} and {hosts[0].case.subject} of {data} are on different grids; resample them to one."
        )
    return hosts


def _load(host: _Host) -> tuple[dict[Modality, VolumeArray], Labels]:
    loaded = dict(load_complete([host.case]))
    if host.case.subject not in loaded:
        raise UsageError(f"{host.case.subject} cannot be read; leave it out of --data.")
    volumes = loaded[host.case.subject]
    labels = load_labels(host.mask, volumes[MODALITIES[0]].grid, host.case.subject)
    if labels is None:
        raise UsageError(f"{host.mask} cannot be read; leave {host.case.subject} out of --data.")
    return {m: v.data for m, v in volumes.items()}, labels


def _check_places(options: TransplantOptions) -> None:
    output = options.output.resolve()
    for option, given in (("--lesions", options.lesions), ("--data", options.data)):
        if not given.exists():
            raise UsageError(f"{option} {given} does not exist.")
        place = given.resolve()
        if output == place or place in output.parents or output in place.parents:
            raise UsageError(
                f"--output {options.output} and {option} {given} lie in each other; give another --output."
            )


def _form(options: TransplantOptions, records: Sequence[TransplantRecord]) -> dict[str, Any]:
    return {
        "synthetic": True,
        "tetrad": __version__,
        "taught_by": [],
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()},
        "exams": [asdict(record) for record in records],
    }
