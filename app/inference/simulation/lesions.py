"""Read lesions: masks as NIfTI, or label maps of many patients in one file."""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.core.constants import GRID_TOLERANCE
from app.core.errors import EmptyVolumeError, UsageError, VolumeError
from app.core.types import Affine
from app.data.labels import has_cavity, tumour_labels
from app.data.nifti_reader import load_volume
from app.data.segmentations import find_segmentations
from app.inference.simulation.atlas import Frame
from app.preprocessing.foreground import bounding_box

Labels = NDArray[np.uint8]

#: Labels that a mask may have; 4 is that of BraTS until 2022.
_KNOWN: Final = frozenset({0, 1, 2, 3, 4})
_ADVICE: Final = "give masks with 1 (core), 2 (oedema) and 3 (enhancing tumour)"
BROKEN: Final = (OSError, ValueError, KeyError, lzma.LZMAError, zipfile.BadZipFile, zlib.error, EOFError)


@dataclass(frozen=True)
class Lesion:
    """Name a lesion, and how it is brought to a grid.

    Attributes:
        name: of its patient.
        place: where it was read from, for messages.
        load: gives its labels on a grid, uint8 L x P x S: 1 core, 2 oedema, 3 enhancing tumour.
    """

    name: str
    place: str
    load: Callable[[Frame], Labels]


def open_lesions(path: Path) -> list[Lesion]:
    """List the lesions of a folder of `-seg.nii.gz`, of one mask, or of a file of label maps (`.npz`, `.npz.xz`).

    Masks are read when they are used, label maps at once.

    Raises:
        UsageError: there is none, or a file of label maps cannot be read.
    """
    if not path.exists():
        raise UsageError(f"--lesions {path} does not exist; give a folder of masks, a mask, or a file of label maps.")
    if path.is_file() and path.name.endswith((".npz", ".npz.xz")):
        return _label_maps(path)
    masks = find_segmentations(path) if path.is_dir() else {path.name.removesuffix(".gz").removesuffix(".nii"): path}
    if not masks:
        raise UsageError(f"{path} holds no mask; name them <subject>-seg.nii.gz.")
    return [Lesion(name, str(mask), _reader(mask)) for name, mask in sorted(masks.items())]


def _reader(path: Path) -> Callable[[Frame], Labels]:
    return lambda frame: read_mask(path, frame)


def read_mask(path: Path, frame: Frame) -> Labels:
    """Read a mask that lies on a grid.

    Raises:
        UsageError: it cannot be read, is on another grid, is empty, or has labels that BraTS has not.
    """
    try:
        volume = load_volume(path, strict=True)
    except EmptyVolumeError:
        raise UsageError(f"{path} is empty; {_ADVICE}.") from None
    except VolumeError as error:
        raise UsageError(str(error)) from None
    grid = volume.grid
    if grid.lps_shape != frame.shape or not same_places(grid.lps_affine, frame):
        voxels = "x".join(map(str, frame.shape))
        raise UsageError(
            f"{path} is on another grid ({grid.describe()}) than the brain ({voxels}); resample it to that one."
        )
    return checked_labels(volume.data, str(path))


def same_places(affine: Affine, frame: Frame) -> bool:
    """Tell whether the corners of two grids lie within a part of a voxel of one another."""
    ends = np.array([[i, j, k, 1.0] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    ends[:, :3] *= np.array(frame.shape) - 1
    apart = np.linalg.norm((ends @ (affine - frame.matrix).T)[:, :3], axis=1)
    return bool(apart.max() <= GRID_TOLERANCE * min(frame.spacing))


def checked_labels(values: NDArray[Any], place: str) -> Labels:
    """Bring labels to those of BraTS since 2023.

    Args:
        place: where they are from, for messages.

    Raises:
        UsageError: they are none, all 0, or some are unknown.
    """
    labels = np.rint(values).astype(np.int64)
    if (unknown := set(np.unique(labels).tolist()) - _KNOWN) or not np.array_equal(labels, values):
        shown = ", ".join(map(str, sorted(unknown))) or "fractions"
        raise UsageError(f"{place} has unknown labels ({shown}); {_ADVICE}.")
    if has_cavity(labels):
        raise UsageError(f"{place} has label 4 beside 3, a resection cavity, which cannot be made; {_ADVICE}.")
    if not (tumour := tumour_labels(labels)).any():
        raise UsageError(f"{place} is empty; {_ADVICE}.")
    return tumour


def _label_maps(path: Path) -> list[Lesion]:
    """Lesions of `seg`, N x L x P x S over the whole volume, named by `patient`; each is kept cut to its box."""
    try:
        content = path.read_bytes()
        with np.load(io.BytesIO(lzma.decompress(content) if path.suffix == ".xz" else content)) as arrays:
            maps = arrays["seg"]
            names = arrays["patient"].tolist() if "patient" in arrays else [f"lesion-{n}" for n in range(len(maps))]
        if maps.ndim != 4 or len(names) != len(maps) or maps.dtype.kind not in "iu":
            raise ValueError("seg is not N x L x P x S of whole numbers")
    except BROKEN as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:100]
        raise UsageError(f"{path} is no file of label maps ({reason}); it needs an array `seg`.") from None
    return [Lesion(str(name), f"{path} ({name})", _cut(labels, f"{path} ({name})"))
            for name, labels in zip(names, maps, strict=True)]  # fmt: skip


def _cut(labels: NDArray[Any], place: str) -> Callable[[Frame], Labels]:
    if not labels.any():
        return lambda _: checked_labels(labels[:1], place)
    box, whole = bounding_box(labels > 0), labels.shape
    small = np.array(labels[box])
    return lambda frame: resampled(checked_labels(small, place), [side.start for side in box], whole, frame.shape)


def resampled(small: Labels, start: list[int], whole: tuple[int, ...], shape: tuple[int, int, int]) -> Labels:
    """Bring a label map to another number of voxels over the same extent, by the nearest voxel.

    First and last voxels lie on each other, as where a map was made by sampling between the corners.

    Args:
        small: what is cut out of the map; start: from where; whole: the map's voxels.
        shape: voxels that are wanted.
    """
    places, sources = [], []
    for first, extent, before, after in zip(start, small.shape, whole, shape, strict=True):
        nearest = np.rint(np.linspace(0, before - 1, after)).astype(int) - first
        there = np.flatnonzero((nearest >= 0) & (nearest < extent))
        places.append(there)
        sources.append(nearest[there])
    labels = np.zeros(shape, np.uint8)
    labels[np.ix_(*places)] = small[np.ix_(*sources)]
    return labels
