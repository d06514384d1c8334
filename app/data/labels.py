"""Bring the tumour labels of every BraTS year to one convention."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.core.errors import VolumeError
from app.core.types import MaskArray
from app.data.nifti_reader import Grid, load_volume

log = logging.getLogger(__name__)

#: Labels of each region, as `tumour_labels` has them.
REGIONS: Final[dict[str, tuple[int, ...]]] = {"ET": (3,), "TC": (1, 3), "WT": (1, 2, 3)}


def load_labels(path: Path | None, grid: Grid, subject: str) -> NDArray[np.uint8] | None:
    """Load a segmentation as `tumour_labels` gives it; log why and return None if it is unusable."""
    if path is None:
        log.warning("%s has no segmentation (no %s-seg.nii.gz): it teaches images, not tumours.", subject, subject)
        return None
    try:
        volume = load_volume(path, strict=True)
    except VolumeError as error:
        log.warning("%s is used without its segmentation: %s", subject, error)
        return None
    if not volume.grid.same_as(grid):
        log.warning("%s is used without its segmentation: %s is on another grid.", subject, path)
        return None
    for note in volume.notes:
        log.warning("%s", note)
    labels = np.rint(volume.data).astype(np.int64)
    if (unknown := set(np.unique(labels).tolist()) - {0, 1, 2, 3, 4}) or not np.array_equal(labels, volume.data):
        shown = ", ".join(map(str, sorted(unknown))) or "fractions"
        log.warning("%s is used without its segmentation: %s has labels that BraTS has not (%s).", subject, path, shown)
        return None
    if has_cavity(labels):
        log.warning("%s: label 4 beside 3 is taken for a resection cavity, which is no tumour (%s).", subject, path)
    tumour = tumour_labels(labels)
    if not tumour.any():
        log.warning("%s has an empty segmentation: it counts as healthy.", subject)
    return tumour


def tumour_labels(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """Convert BraTS labels of any year to those since 2023.

    Until 2022 the enhancing tumour is 4. In exams after an operation (2024) 4 is the resection cavity, which is no
    tumour: it becomes 0. Only a map with both 3 and 4 shows that it is one of these.

    Args:
        labels: 0 to 4, any shape and type.

    Returns:
        uint8, same shape: 1 core without enhancement, 2 oedema, 3 enhancing tumour.
    """
    rounded = np.rint(labels).astype(np.uint8)
    return np.where(rounded == 4, 0 if has_cavity(rounded) else 3, rounded).astype(np.uint8)


def region_mask(labels: NDArray[Any], region: str) -> MaskArray:
    """Mark the voxels of a region; labels as `tumour_labels` takes them."""
    return np.isin(tumour_labels(labels), REGIONS[region])


def has_cavity(labels: NDArray[Any]) -> bool:
    """Tell whether a map has both 3 and 4, so that 4 is a resection cavity."""
    return bool((labels == 3).any() and (labels == 4).any())
