"""Fit the constants of the scheme `dataset`: one clip, mean and deviation of each sequence over all subjects.

Source: the BraSyn 2025 entry ("No More Slice Wars", data preprocessing): clip at the 99.5th percentile of the non-zero
voxels of the whole training set, then take mean and deviation of what is left of them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.core.atomic_io import save_bytes
from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError
from app.core.types import VolumeArray
from app.data.cases import Case
from app.data.discovery import scan
from app.data.loading import load_complete
from app.preprocessing.normalization import Intensity

log = logging.getLogger(__name__)

PERCENTILE: Final = 99.5
#: A positive float32 without its last bits: 2048 bins for each doubling, whatever the files' unit.
_DROPPED_BITS: Final = 12
_BINS: Final = 2 ** (31 - _DROPPED_BITS)


class IntensityHistogram:
    """Count the positive voxels of any number of volumes in constant memory (12 MB).

    Bins are 0.05 % wide, relative to their value. Each also sums its voxels and their squares, so that mean and
    deviation do not suffer from the bins' width.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(_BINS, np.int64)
        self._sums, self._squares = np.zeros(_BINS), np.zeros(_BINS)

    @property
    def count(self) -> int:
        """Number of voxels so far."""
        return int(self._counts.sum())

    def add(self, volume: VolumeArray) -> None:
        """Count a volume's positive voxels.

        Args:
            volume: float32, any shape, in the file's units.
        """
        # Bit patterns of positive floats are in the order of the floats.
        bins, voxels = _bins_of(volume)
        self._counts += np.bincount(bins, minlength=_BINS)
        self._sums += np.bincount(bins, voxels, _BINS)
        self._squares += np.bincount(bins, voxels**2, _BINS)

    def intensity(self, percentile: float = PERCENTILE) -> Intensity:
        """Give the clip at a percentile of the voxels, and mean and deviation after clipping.

        Raises:
            ValueError: there is no voxel.
        """
        if not self.count:
            raise ValueError("a histogram without voxels has no percentile")
        wanted = percentile / 100 * (self.count - 1)
        reached = np.cumsum(self._counts)
        at = int(np.searchsorted(reached, wanted, side="right"))
        # Inside its bin the percentile is told no better than by the bin's mean.
        clip = float(self._sums[at] / self._counts[at])
        above = self.count - int(reached[at - 1]) if at else self.count
        mean = (self._sums[:at].sum() + above * clip) / self.count
        variance = (self._squares[:at].sum() + above * clip**2) / self.count - mean**2
        std = float(np.sqrt(max(variance, 0.0)))
        return Intensity(mean=float(mean), std=std if std > 1e-6 * mean else float(mean), clip=clip)


def _bins_of(volume: VolumeArray) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    voxels = np.ascontiguousarray(volume[volume > 0], dtype=np.float32)
    return (voxels.view(np.uint32) >> np.uint32(_DROPPED_BITS)).astype(np.int64), voxels.astype(np.float64)


def fit_normalization(cases: Iterable[Case]) -> tuple[dict[Modality, Intensity], list[str]]:
    """Fit the constants on every complete readable subject; the others are left out by name.

    Returns:
        The constants of each sequence, to six digits, and the subjects.

    Raises:
        UsageError: fewer than two subjects can be used.
    """
    histograms, subjects = {m: IntensityHistogram() for m in MODALITIES}, list[str]()
    for subject, volumes in load_complete(cases):
        for modality, histogram in histograms.items():
            histogram.add(volumes[modality].data)
        subjects.append(subject)
        log.info("%s counted", subject)
    if len(subjects) < 2:
        raise UsageError("fewer than two complete subjects can be read; give a folder of subjects with four sequences.")
    fitted = {m: histogram.intensity() for m, histogram in histograms.items()}
    return {m: Intensity(*(float(f"{v:.6g}") for v in (i.mean, i.std, i.clip))) for m, i in fitted.items()}, subjects


def fit_and_write_normalization(data: Path, file: Path) -> dict[Modality, Intensity]:
    """Fit on the subjects of `data`, and write the file that `normalization.file` of a recipe names.

    Raises:
        UsageError: fewer than two subjects can be used, or `data` is no folder.
        OutputError: the file cannot be written; nothing is there.
    """
    intensities, subjects = fit_normalization(scan(data).cases)
    form: dict[str, Any] = {
        "intensities": {m: {"mean": i.mean, "std": i.std, "clip": i.clip} for m, i in intensities.items()},
        "subjects": subjects,
    }
    save_bytes((json.dumps(form, indent=1) + "\n").encode(), file)
    return intensities
