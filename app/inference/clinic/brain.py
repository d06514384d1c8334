"""The brain of an aligned exam, found or given, and whether it can be one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
from app.inference.clinic.limits import BRAIN_ML, CUT_SHARE, LEAST_COVERAGE, LEAST_DICE, MASK_SLIP_MM, UNSAID_SHARE
from app.inference.clinic.scans import Scan
from app.preprocessing.standard_space import WORKING_SPACING, coverage, mask_to_working, to_itk

#: Order in which the brain is looked for: its masks are tightest on T1-weighted images.
_BRAINS: Final[tuple[Modality, ...]] = ("t1n", "t1c", "t2f", "t2w")

#: Voxels at a face of a grid: a network that finds brains may leave out the very last.
_END: Final = 3


@dataclass(frozen=True)
class GivenMask:
    """Hold a user's mask of the brain.

    Attributes:
        owners: the sequences on whose grid it is; it was drawn on one of them.
    """

    path: Path
    image: sitk.Image
    owners: tuple[Modality, ...]


@dataclass(frozen=True)
class FoundBrain:
    """Hold the brain of an aligned exam.

    Attributes:
        mask: on the working grid.
        how: where it is from, for the record.
        agreement: Dice of the brains of two sequences, by the other sequence; empty where none was looked for.
    """

    mask: MaskArray
    how: str
    agreement: dict[Modality, float] = field(default_factory=dict)


def read_mask(path: Path, scans: Mapping[Modality, Scan], owner: Modality | None = None) -> GivenMask:
    """Read a mask of the brain.

    Args:
        owner: the sequence that it was drawn on; any whose grid it is on if not given.

    Raises:
        CaseError: it is on the grid of no sequence, or not on that of `owner`.
        VolumeError: it cannot be read.
    """
    given = load_volume(path, strict=True, least_extent=LEAST_SLICES)
    if owner is not None and owner not in scans:
        raise CaseError(f"--mask-of {owner} is not among {', '.join(scans)}.")
    owners = tuple(m for m, scan in scans.items() if scan.volume.grid.same_as(given.grid) and owner in (None, m))
    if not owners:
        what = "the grid of no sequence" if owner is None else f"another grid than {owner}"
        raise CaseError(f"the mask {path} is on {what} ({given.grid.describe()}); resample it to one.")
    return GivenMask(path, to_itk((given.data > 0).astype(np.float32), given.grid.lps_affine), owners)


def brain_of(exam: AlignedExam, scans: Mapping[Modality, Scan], mask: GivenMask | None) -> FoundBrain:
    """Find the brain on the working grid.

    Where a sequence shows a part of it alone, it is found in the one that shows most.

    Raises:
        CaseError: none is found, two sequences disagree on it, or nobody knows where a given mask belongs.
    """
    if mask is not None:
        _check_owners(mask, exam)
        return FoundBrain(mask_to_working(mask.image, exam.transforms[mask.owners[0]], exam.grid), f"mask {mask.path}")
    if all(scan.is_stripped for scan in scans.values()):
        shown = np.sum(list(exam.seen.values()), axis=0)
        votes = np.sum([v > 0 for v in exam.volumes.values()], axis=0)
        return FoundBrain(np.asarray(2 * votes > shown), "stripped inputs")
    brains = {m: _found_brain(exam, scans, m) for m in _BRAINS if m in scans}
    first = _fullest(brains, exam)
    agreement: dict[Modality, float] = {}
    for other in (m for m in brains if m != first):
        dice = agreement[other] = _dice(brains[first] & exam.seen[other], brains[other] & exam.seen[first])
        if dice < LEAST_DICE:
            raise CaseError(
                f"the brain of {scans[first].path} and that of {scans[other].path} agree to "
                f"{dice:.2f} only, {LEAST_DICE} is asked for; give a mask with --mask."
            )
    return FoundBrain(brains[first], f"deepbet on {first}", agreement)


def _fullest(brains: Mapping[Modality, MaskArray], exam: AlignedExam) -> Modality:
    """Choose the first sequence that shows all of what any shows, or the one that shows most."""
    union = np.any(list(brains.values()), axis=0)
    shares = {m: coverage(union, exam.seen[m]) for m in brains}
    return next((m for m in brains if shares[m] >= LEAST_COVERAGE), max(shares, key=lambda m: shares[m]))


def _check_owners(mask: GivenMask, exam: AlignedExam) -> None:
    """Refuse a mask on the grid of several sequences between which the patient moved."""
    points = [exam.grid.TransformIndexToPhysicalPoint([n // 4 * i for n in exam.grid.GetSize()]) for i in (1, 2, 3)]
    first, *others = ([np.array(exam.transforms[m].TransformPoint(p)) for p in points] for m in mask.owners)
    moved = max((float(np.linalg.norm(a - b)) for o in others for a, b in zip(first, o, strict=True)), default=0.0)
    if moved > MASK_SLIP_MM:
        raise CaseError(
            f"the mask {mask.path} is on the grid of {', '.join(mask.owners)}, between which the patient moved by "
            f"{moved:.1f} mm; say by --mask-of which of them it was drawn on."
        )


def is_cut(brain: MaskArray) -> bool:
    """Tell whether a brain ends at a face of its grid: more than a spinal cord goes through there."""
    for axis in range(3):
        sections = np.count_nonzero(brain, axis=tuple(a for a in range(3) if a != axis))
        ends = np.concatenate([sections[:_END], sections[-_END:]])
        if ends.max() > CUT_SHARE * max(int(sections.max()), 1):
            return True
    return False


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


def partial_views(exam: AlignedExam, brain: MaskArray) -> list[str]:
    """Say of each sequence how much of the brain it does not show, where that is more than a little."""
    shares = {m: coverage(brain, seen) for m, seen in exam.seen.items()}
    return [
        f"{m} shows {100 * share:.0f} % of the brain; the rest is made without it."
        for m, share in shares.items()
        if share < 1 - UNSAID_SHARE
    ]


def brain_ml(brain: MaskArray) -> float:
    """Measure a mask on the working grid in millilitres."""
    return float(np.count_nonzero(brain)) * WORKING_SPACING**3 / 1000


def _dice(one: MaskArray, two: MaskArray) -> float:
    total = np.count_nonzero(one) + np.count_nonzero(two)
    return 2 * float(np.count_nonzero(one & two)) / total if total else 0.0
