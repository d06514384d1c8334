"""Read lesions as they were scanned, with what lies around them: a file of patches, or complete exams."""

from __future__ import annotations

import io
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.core.types import MaskArray
from app.data.cases import Case
from app.data.discovery import scan
from app.data.labels import load_labels
from app.data.loading import load_complete
from app.data.segmentations import find_segmentations
from app.inference.simulation.atlas import Frame
from app.inference.simulation.lesions import BROKEN, Labels, checked_labels, same_places
from app.preprocessing.foreground import bounding_box, vote_foreground
from app.preprocessing.normalization import Normalization, measure

#: What is cut out of an exam reaches so many voxels beyond its lesion.
MARGIN: Final = 16
#: A resampled voxel is outside the patient's brain where more than this share of it is.
_OUTSIDE: Final = 0.25
#: Scores of a patch are over the whole brain of its patient.
_SCORES: Final = Normalization("volume")
_ADVICE: Final = (
    "it needs the arrays image (N x 4 x X x Y x Z), step, seg, patient, start, spacing and channels "
    "(docs/simulation.md)"
)


@dataclass(frozen=True)
class PlacedPatch:
    """Hold a part of an exam with a lesion in it, on the grid of a brain.

    Attributes:
        images: float32, 4 x X x Y x Z in challenge order: scores over its patient's brain.
        labels: uint8, X x Y x Z: 1 core, 2 oedema, 3 enhancing tumour.
        brain: bool, X x Y x Z: where its patient has brain.
        start: voxel of the grid along L, P, S where it begins.
    """

    images: NDArray[np.float32]
    labels: Labels
    brain: MaskArray
    start: tuple[int, int, int]

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Where it lies on the grid."""
        x, y, z = (slice(a, a + n) for a, n in zip(self.start, self.labels.shape, strict=True))
        return x, y, z


@dataclass(frozen=True)
class LesionPatch:
    """Name a patch, and how it is brought to a grid.

    Attributes:
        name: of its patient.
        place: where it was read from, for messages.
        load: gives it on a grid.
    """

    name: str
    place: str
    load: Callable[[Frame], PlacedPatch]


def open_patches(path: Path) -> list[LesionPatch]:
    """List the lesions of a file of patches (`.npz`, `.npz.xz`), or of a folder of complete exams with segmentations.

    The file is read at once, exams when they are used.

    Raises:
        UsageError: there is none, or the file cannot be read.
    """
    if path.is_file():
        return _of_file(path)
    cases = scan(path).cases
    masks = find_segmentations(path, cases)
    found = [LesionPatch(c.subject, str(masks[c.subject]), _exam_reader(c, masks[c.subject]))
             for c in cases if set(c.grids) == set(MODALITIES) and c.subject in masks]  # fmt: skip
    if not found:
        raise UsageError(f"{path} holds no complete exam with a segmentation (<subject>-seg.nii.gz).")
    return found


def _exam_reader(case: Case, mask: Path) -> Callable[[Frame], PlacedPatch]:
    def read(frame: Frame) -> PlacedPatch:
        loaded = dict(load_complete([case]))
        if case.subject not in loaded:
            raise UsageError(f"the sequences beside {mask} cannot be read; leave {case.subject} out of --lesions.")
        volumes = loaded[case.subject]
        grid = volumes[MODALITIES[0]].grid
        if grid.lps_shape != frame.shape or not same_places(grid.lps_affine, frame):
            raise UsageError(f"{grid.path} is on another grid ({grid.describe()}) than the exams of --data.")
        found = load_labels(mask, grid, case.subject)
        if found is None:
            raise UsageError(f"{mask} cannot be used; leave {case.subject} out of --lesions.")
        labels = checked_labels(found, str(mask))
        brain = vote_foreground({m: v.data for m, v in volumes.items()})
        inside = bounding_box(labels > 0)
        box = tuple(slice(max(s.start - MARGIN, 0), s.stop + MARGIN) for s in inside)
        images = []
        for m in MODALITIES:
            scale = measure(volumes[m].data, m, _SCORES)
            images.append((volumes[m].data[box] - np.float32(scale.mean)) / np.float32(scale.std))
        x, y, z = (s.start for s in box)
        return PlacedPatch(np.stack(images), labels[box], brain[box], (x, y, z))

    return read


def _of_file(path: Path) -> list[LesionPatch]:
    try:
        content = path.read_bytes()
        with np.load(io.BytesIO(lzma.decompress(content) if path.suffix == ".xz" else content)) as arrays:
            images, step, labels = arrays["image"], float(arrays["step"]), arrays["seg"]
            names, starts = arrays["patient"].tolist(), arrays["start"]
            spacing = np.asarray(arrays["spacing"], np.float64)
            order = [arrays["channels"].tolist().index(m) for m in MODALITIES]
        count = len(names)
        shapes = (images.shape, labels.shape, starts.shape, spacing.shape)
        if shapes != ((count, len(MODALITIES), *labels.shape[1:]), (count, *labels.shape[1:]), (count, 3), (3,)):
            raise ValueError("its arrays do not fit together")
        if labels.ndim != 4 or not step > 0 or not (spacing > 0).all():
            raise ValueError("seg is not N x X x Y x Z, or step or spacing is not above 0")
    except BROKEN as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:100]
        raise UsageError(f"{path} is no file of lesion patches ({reason}); {_ADVICE}.") from None
    return [
        LesionPatch(str(n), f"{path} ({n})", _resampler(i[order], step, s, first * spacing, spacing, f"{path} ({n})"))
        for n, i, s, first in zip(names, images, labels, starts, strict=True)
    ]


def _resampler(
    images: NDArray[Any],
    step: float,
    labels: NDArray[Any],
    corner: NDArray[np.float64],
    spacing: NDArray[np.float64],
    place: str,
) -> Callable[[Frame], PlacedPatch]:
    """Bring a patch to a grid: images linearly, labels by the nearest voxel.

    Args:
        corner: its first voxel in millimetres from the grid's first.
    """

    def resample(frame: Frame) -> PlacedPatch:
        from scipy.ndimage import map_coordinates

        checked = checked_labels(labels, place)
        first = np.ceil(np.maximum(corner, 0) / frame.spacing).astype(int)
        last = np.floor((corner + (np.array(labels.shape) - 1) * spacing) / frame.spacing).astype(int)
        last = np.minimum(last, np.array(frame.shape) - 1)
        if (first >= last).any():
            raise UsageError(f"{place} lies outside the grid of the exams of --data; they must be on that of BraTS.")
        axes = [(np.arange(a, b + 1) * own - c) / s
                for a, b, own, c, s in zip(first, last, frame.spacing, corner, spacing, strict=True)]  # fmt: skip
        where = np.meshgrid(*axes, indexing="ij")
        # A voxel that is 0 in all sequences is background; a mean of 0 in all four at once does not happen.
        outside = map_coordinates((images == 0).all(axis=0).astype(np.float32), where, order=1) > _OUTSIDE
        scores = [map_coordinates(image.astype(np.float32) * np.float32(step), where, order=1) for image in images]
        x, y, z = (int(v) for v in first)
        return PlacedPatch(np.stack(scores), map_coordinates(checked, where, order=0), ~outside, (x, y, z))

    return resample
