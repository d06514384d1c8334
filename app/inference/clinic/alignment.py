"""All sequences of an exam on one 1 mm grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import SimpleITK as sitk

from app.core.constants import Modality
from app.core.errors import CaseError
from app.core.types import MaskArray, VolumeArray
from app.inference.clinic.limits import (
    LEAST_GAIN,
    LEAST_LEAD,
    WEAKEST_INFORMATION,
    WIDEST_SPREAD_MM,
    WORSE_INFORMATION,
)
from app.inference.clinic.scans import Scan, choose_anchor
from app.preprocessing.registration import RigidAlignment, register
from app.preprocessing.standard_space import to_working, wider_grid, working_grid


@dataclass(frozen=True)
class AlignedExam:
    """Hold all sequences of an exam on one 1 mm grid.

    Attributes:
        anchor: the sequence that did not move.
        grid: the 1 mm grid.
        transforms: from points of the grid to points of each sequence.
        alignments: of the sequences beside the anchor.
        kept: those among them whose headers were right already.
        volumes: with skull, on the grid.
        seen: where each sequence was scanned.
    """

    anchor: Modality
    grid: sitk.Image
    transforms: dict[Modality, sitk.Transform]
    alignments: dict[Modality, RigidAlignment]
    kept: frozenset[Modality]
    volumes: dict[Modality, VolumeArray]
    seen: dict[Modality, MaskArray]


def align(scans: Mapping[Modality, Scan]) -> AlignedExam:
    """Bring all sequences to one 1 mm grid on the anchor's axes.

    Raises:
        CaseError: a sequence cannot be aligned, or its alignment cannot be trusted.
    """
    anchor = choose_anchor(scans)
    grid = working_grid(scans[anchor].image)
    identity = sitk.Transform(3, sitk.sitkIdentity)
    transforms: dict[Modality, sitk.Transform] = {}
    alignments: dict[Modality, RigidAlignment] = {}
    kept: set[Modality] = set()
    for modality, scan in scans.items():
        if modality == anchor:
            transforms[modality] = identity
            continue
        found = alignments[modality] = register(scans[anchor].image, scan.image)
        together = scan.volume.grid.same_as(scans[anchor].volume.grid)
        check_alignment(found, scan.path, scans[anchor].path)
        least = LEAST_GAIN * abs(found.before) if together else 0.0
        if found.after >= found.before - least:
            # The headers were as good, or better.
            kept.add(modality)
        transforms[modality] = identity if modality in kept else found.transform
    return _on_grid(AlignedExam(anchor, grid, transforms, alignments, frozenset(kept), {}, {}), scans, grid)


def widen(exam: AlignedExam, scans: Mapping[Modality, Scan]) -> AlignedExam:
    """Extend the grid of an aligned exam to all that any of its sequences shows.

    The anchor's own box is enough where the anchor shows the brain. Where it is a slab, the others tell how much of
    the brain it lacks.
    """
    wider = wider_grid(exam.grid, [s.image for s in scans.values()], [exam.transforms[m] for m in scans])
    return _on_grid(exam, scans, wider)


def _on_grid(exam: AlignedExam, scans: Mapping[Modality, Scan], grid: sitk.Image) -> AlignedExam:
    pairs = {m: to_working(scan.image, exam.transforms[m], grid) for m, scan in scans.items()}
    volumes, seen = {m: values for m, (values, _) in pairs.items()}, {m: there for m, (_, there) in pairs.items()}
    return replace(exam, grid=grid, volumes=volumes, seen=seen)


def check_alignment(found: RigidAlignment, path: Path, anchor: Path) -> None:
    """Refuse an alignment that cannot be trusted.

    Raises:
        CaseError: it is worse than the headers', weak, ambiguous, or better with right and left exchanged.
    """
    pair = f"{path} and {anchor}"
    if abs(found.mirrored - found.after) < LEAST_LEAD:
        # A brain and its own mirror image are told apart; another patient's fits as badly either way.
        raise CaseError(
            f"{pair} have too little in common: they fit as well with right and left exchanged ({found.mirrored:.2f} "
            f"against {found.after:.2f}); check that they show one patient."
        )
    if found.mirrored < found.after:
        raise CaseError(
            f"{path} fits {anchor} better with right and left exchanged ({found.mirrored:.2f} against "
            f"{found.after:.2f}); one of them is mirrored: export both again."
        )
    if found.after > WEAKEST_INFORMATION:
        raise CaseError(
            f"{pair} have too little in common ({found.after:.2f}, at most {WEAKEST_INFORMATION} is asked for); check "
            "that they show one patient."
        )
    if found.after > found.before + WORSE_INFORMATION:
        raise CaseError(f"{pair} could not be aligned ({found.before:.2f} before, {found.after:.2f} after).")
    if found.spread > WIDEST_SPREAD_MM:
        raise CaseError(f"{pair} align in two ways, {found.spread:.0f} mm apart; align them first.")
