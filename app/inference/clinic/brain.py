"""The brain of an aligned exam, found or given, and whether it can be one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import SimpleITK as sitk

from app.core.constants import Modality
from app.core.errors import CaseError
from app.core.types import MaskArray
from app.data.nifti_reader import load_volume
from app.dicom.geometry import LEAST_SLICES
from app.inference.clinic.alignment import AlignedExam
from app.inference.clinic.brain_extraction import find_brain
from app.inference.clinic.limits import BRAIN_ML, LEAST_COVERAGE, LEAST_DICE
from app.inference.clinic.scans import Scan
from app.preprocessing.standard_space import WORKING_SPACING, coverage, mask_to_working, to_itk

#: Order in which the brain is looked for: its masks are tightest on T1-weighted images.
_BRAINS: Final[tuple[Modality, ...]] = ("t1n", "t1c", "t2f", "t2w")


@dataclass(frozen=True)
class GivenMask:
    """Hold a user's mask of the brain.

    Attributes:
        owner: the sequence on whose grid it is.
    """

    path: Path
    image: sitk.Image
    owner: Modality


def read_mask(path: Path, scans: Mapping[Modality, Scan]) -> GivenMask:
    """Read a mask of the brain.

    Raises:
        CaseError: it is on the grid of no sequence.
        VolumeError: it cannot be read.
    """
    given = load_volume(path, strict=True, least_extent=LEAST_SLICES)
    owner = next((m for m, scan in scans.items() if scan.volume.grid.same_as(given.grid)), None)
    if owner is None:
        raise CaseError(f"the mask {path} is on the grid of no sequence ({given.grid.describe()}); resample it to one.")
    return GivenMask(path, to_itk((given.data > 0).astype(np.float32), given.grid.lps_affine), owner)


def brain_of(exam: AlignedExam, scans: Mapping[Modality, Scan], mask: GivenMask | None) -> tuple[MaskArray, str]:
    """Find the brain on the working grid, and say how.

    Raises:
        CaseError: none is found, or two sequences disagree on it.
    """
    if mask is not None:
        return mask_to_working(mask.image, exam.transforms[mask.owner], exam.grid), f"mask {mask.path}"
    if all(scan.is_stripped for scan in scans.values()):
        votes = np.sum([v > 0 for v in exam.volumes.values()], axis=0)
        return np.asarray(2 * votes > len(scans)), "stripped inputs"
    first, *others = [m for m in _BRAINS if m in scans]
    brain = _found_brain(exam, scans, first)
    for other in others:
        dice = _dice(brain & exam.seen[other], _found_brain(exam, scans, other) & exam.seen[first])
        if dice < LEAST_DICE:
            raise CaseError(
                f"the brain of {scans[first].path} and that of {scans[other].path} agree to "
                f"{dice:.2f} only, {LEAST_DICE} is asked for; give a mask with --mask."
            )
    return brain, f"deepbet on {first}"


def _found_brain(exam: AlignedExam, scans: Mapping[Modality, Scan], modality: Modality) -> MaskArray:
    try:
        return find_brain(exam.volumes[modality])
    except ValueError as error:
        raise CaseError(f"{scans[modality].path}: {error}; give a mask with --mask.") from None


def check_brain(exam: AlignedExam, brain: MaskArray) -> None:
    """Refuse a brain of an impossible size, or one that a sequence does not show.

    Raises:
        CaseError: either is so.
    """
    volume = brain_ml(brain)
    low, high = BRAIN_ML
    if not low <= volume <= high:
        raise CaseError(f"the brain found has {volume:.0f} ml, {low:.0f} to {high:.0f} are possible; give --mask.")
    for modality, seen in exam.seen.items():
        share = coverage(brain, seen)
        if share < LEAST_COVERAGE:
            raise CaseError(
                f"{modality} shows {100 * share:.0f} % of the brain, {100 * LEAST_COVERAGE:.0f} % are asked for."
            )


def brain_ml(brain: MaskArray) -> float:
    """Measure a mask on the working grid in millilitres."""
    return float(np.count_nonzero(brain)) * WORKING_SPACING**3 / 1000


def _dice(one: MaskArray, two: MaskArray) -> float:
    total = np.count_nonzero(one) + np.count_nonzero(two)
    return 2 * float(np.count_nonzero(one & two)) / total if total else 0.0
