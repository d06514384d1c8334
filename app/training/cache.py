"""Complete subjects as normalised arrays on disk, so that training never decodes gzip.

One `<subject>.npy` each: float16 (sequence, left, posterior, superior) scores, cropped to the brain, memory-mapped
when read; `index.json` holds the rest. A cache is built once per folder and normalisation.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.cases import Case
from app.constants import MODALITIES, VIEWS, Modality, View
from app.errors import UsageError, VolumeError
from app.intensity import Intensity, Normalization
from app.preprocess import measure, normalize, vote_foreground
from app.types import MaskArray, VolumeArray
from app.views import SLICE_AXIS, stack_slices
from app.volume import Volume, load_volume

log = logging.getLogger(__name__)

#: Slices with fewer brain pixels teach little.
MIN_BRAIN_PIXELS = 2000
_INDEX = "index.json"


@dataclass(frozen=True)
class CachedSubject:
    """One subject of a cache.

    Attributes:
        scores: float16 (4, left, posterior, superior), challenge order, memory-mapped, cropped to the brain.
        brain: bool, same box: where most sequences are brighter than background.
        intensities: how the scores were made, per sequence.
        slices: per view, the indices worth training on.
    """

    name: str
    scores: NDArray[np.float16]
    brain: MaskArray
    intensities: dict[Modality, Intensity]
    slices: dict[View, list[int]]


def load_complete(cases: Iterable[Case]) -> Iterable[tuple[str, dict[Modality, Volume]]]:
    """The volumes of every complete readable subject, one after another; the others are left out by name."""
    for case in cases:
        lacking = [m for m in MODALITIES if m not in case.files]
        if lacking:
            log.warning("%s is left out: it lacks %s.", case.subject, ", ".join(lacking))
            continue
        try:
            loaded = {m: load_volume(case.files[m]) for m in MODALITIES}
        except VolumeError as error:
            log.warning("%s is left out: %s", case.subject, error)
            continue
        first = loaded[MODALITIES[0]]
        if not all(first.grid.same_as(v.grid) for v in loaded.values()):
            log.warning("%s is left out: its sequences are on different grids.", case.subject)
            continue
        yield case.subject, loaded


def build_cache(
    cases: Iterable[Case], folder: Path, normalization: Normalization, min_pixels: int = MIN_BRAIN_PIXELS
) -> list[CachedSubject]:
    """Writes the cache of all complete subjects, or reads it if it is there already.

    Raises:
        UsageError: fewer than two subjects can be used, or the folder holds a cache of another normalisation.
    """
    index = folder / _INDEX
    if not index.exists():
        folder.mkdir(parents=True, exist_ok=True)
        entries = [_write(name, volumes, folder, normalization, min_pixels) for name, volumes in load_complete(cases)]
        index.write_text(json.dumps({"normalization": normalization.to_json(), "subjects": entries}))
    form = json.loads(index.read_text())
    if form["normalization"] != normalization.to_json():
        raise UsageError(f"{folder} holds a cache of another normalisation; give another folder with --cache.")
    subjects = [_read(entry, folder) for entry in form["subjects"] if all(entry["slices"].values())]
    if len(subjects) < 2:
        raise UsageError("fewer than two complete subjects with a whole brain can be read; training needs more.")
    return subjects


def _write(
    name: str, volumes: dict[Modality, Volume], folder: Path, normalization: Normalization, min_pixels: int
) -> dict[str, Any]:
    arrays: dict[Modality, VolumeArray] = {m: v.data for m, v in volumes.items()}
    intensities = {m: measure(arrays[m], m, normalization) for m in MODALITIES}
    brain = vote_foreground(arrays)
    box = tuple(
        slice(int(found[0]), int(found[-1]) + 1)
        for found in (np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3))
    )
    scores = np.stack([normalize(arrays[m], intensities[m], normalization.background)[box] for m in MODALITIES]).astype(
        np.float16
    )
    np.save(folder / f"{name}.npy", scores)
    np.save(folder / f"{name}-brain.npy", np.packbits(brain[box]))
    slices = {
        view: np.flatnonzero(stack_slices(brain[box], view).sum(axis=(1, 2)) >= min_pixels).tolist() for view in VIEWS
    }
    log.info("%s cached", name)
    return {"name": name, "intensities": {m: asdict(i) for m, i in intensities.items()}, "slices": slices}


def _read(entry: dict[str, Any], folder: Path) -> CachedSubject:
    scores = np.load(folder / f"{entry['name']}.npy", mmap_mode="r")
    shape = scores.shape[1:]
    packed = np.load(folder / f"{entry['name']}-brain.npy")
    brain = np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(bool)
    intensities = {m: Intensity(**entry["intensities"][m]) for m in MODALITIES}
    return CachedSubject(entry["name"], scores, brain, intensities, entry["slices"])


def slice_of(volume: NDArray[Any], view: View, index: int) -> NDArray[Any]:
    """One slice (row, column), or (channel, row, column) of a volume with a leading channel axis."""
    axis = SLICE_AXIS[view] + volume.ndim - 3
    return np.asarray(np.take(volume, index, axis=axis))
