"""Sequences as scanned: read, checked for right and left, and chosen among."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import SimpleITK as sitk

from app.core.constants import MODALITIES, REFERENCE_OF, Modality
from app.core.errors import CaseError, VolumeError
from app.data.nifti_reader import Grid, Volume, load_volume
from app.data.origin import made_by_tetrad
from app.dicom.geometry import LEAST_SLICES
from app.inference.clinic.limits import STRIPPED
from app.preprocessing.standard_space import to_itk

#: Order in which sequences are the anchor where their slices are alike.
_ANCHORS: Final[tuple[Modality, ...]] = ("t1n", "t1c", "t2w", "t2f")


@dataclass(frozen=True)
class Scan:
    """Hold one sequence as scanned."""

    volume: Volume
    image: sitk.Image

    @property
    def path(self) -> Path:
        """Give its file."""
        return self.volume.grid.path

    @property
    def is_stripped(self) -> bool:
        """Tell whether most voxels are exactly 0, as in a brain without skull."""
        data = self.volume.data
        return bool(np.count_nonzero(data == 0) > STRIPPED * data.size)


def choose_target(files: Mapping[Modality, object], target: Modality | None) -> Modality:
    """Choose the sequence to make.

    Args:
        files: what is there, by sequence.

    Raises:
        CaseError: none lacks, several do, or fewer than two are left.
    """
    absent = [m for m in MODALITIES if m not in files]
    if target is None and len(absent) != 1:
        what = "has all four sequences" if not absent else f"lacks {', '.join(absent)}"
        raise CaseError(f"the exam {what}; name the one to make with --make.")
    wanted = target or absent[0]
    if len([m for m in files if m != wanted]) < 2:
        raise CaseError(f"{wanted} cannot be made of fewer than two sequences; give more.")
    return wanted


def choose_reference(scans: Mapping[Modality, Scan], target: Modality, asked: Modality | None) -> Modality:
    """Choose the sequence whose grid the result has.

    Raises:
        CaseError: the one that is asked for is not there.
    """
    if asked is not None and asked not in scans:
        raise CaseError(f"the reference {asked} is not among {', '.join(scans)}; name another with --reference.")
    preferred = REFERENCE_OF[target]
    return asked or (preferred if preferred in scans else choose_anchor(scans))


def choose_anchor(scans: Mapping[Modality, Scan]) -> Modality:
    """Choose the sequence that does not move: the one with the thinnest slices."""
    return min(
        (m for m in _ANCHORS if m in scans),
        key=lambda m: (round(max(scans[m].image.GetSpacing()), 1), _ANCHORS.index(m)),
    )


def read_sequence(path: Path) -> Volume:
    """Read a NIfTI file as scanned.

    Raises:
        VolumeError: it cannot be used, or its header does not tell right from left.
    """
    volume = load_volume(path, least_extent=LEAST_SLICES)
    check_header(volume.grid)
    return volume


def scan_of(volume: Volume) -> Scan:
    """Give a sequence as an image of SimpleITK as well.

    Raises:
        VolumeError: its axes are not at right angles.
    """
    path = volume.grid.path
    try:
        return Scan(volume, to_itk(volume.data, volume.grid.lps_affine))
    except ValueError as error:
        raise VolumeError(f"{path}: {error} (sheared slices); resample it to a grid of right angles first.") from None


def check_header(grid: Grid) -> None:
    """Refuse what Tetrad made, and a header that does not tell where the patient's right is.

    Raises:
        VolumeError: it is no scan, it has neither qform nor sform, or they contradict each other.
    """
    if made_by_tetrad(grid):
        raise VolumeError(f"{grid.path} was made by Tetrad and is no scan; leave it out.")
    header = grid.header
    sform, qform = (int(header[name]) > 0 for name in ("sform_code", "qform_code"))
    if not sform and not qform:
        raise VolumeError(
            f"{grid.path} has neither sform nor qform, so right and left cannot be told; export it again."
        )
    if not (sform and qform):
        return
    one, two = header.get_sform(), header.get_qform()
    corner = np.array([*(n - 1 for n in grid.shape), 1.0])
    apart = max(float(np.linalg.norm(((one - two) @ point)[:3])) for point in (corner, np.array([0, 0, 0, 1.0])))
    if apart > max(grid.spacing):
        raise VolumeError(
            f"{grid.path} has an sform and a qform that lie {apart:.1f} mm apart; keep the right one (`fslorient`)."
        )
