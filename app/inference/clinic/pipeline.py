"""Complete an exam as scanned: any grids, skull on, a patient who moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from app.core.constants import MODALITIES, Modality
from app.core.types import MaskArray, VolumeArray
from app.data.nifti_reader import Grid, Volume
from app.data.nifti_writer import scale_to_type, to_array, to_image
from app.inference.clinic.alignment import AlignedExam, align, widen
from app.inference.clinic.brain import FoundBrain, brain_ml, brain_of, check_brain, is_cut, partial_views, read_mask
from app.inference.clinic.scans import Scan, choose_reference, choose_target, scan_of
from app.inference.models import Model
from app.inference.pipeline import describe, fingerprint_of, synthesize_case
from app.inference.provenance import mark_expectation, mark_inputs
from app.preprocessing import standard_space as space
from app.preprocessing.expected_quality import Expectation


@dataclass(frozen=True)
class CompletedExam:
    """Hold a sequence that was made for an exam as scanned.

    Attributes:
        image: in the geometry and number type of the reference.
        aligned, brain, synthesis: at 1 mm, for pictures.
        record: transforms, mutual information, brain volume, checksums; JSON.
        warnings: one sentence each.
        expectation: what the sequence is expected to be worth; None where the model does not tell.
    """

    target: Modality
    reference: Modality
    image: nib.Nifti1Image
    aligned: dict[Modality, VolumeArray]
    brain: MaskArray
    synthesis: VolumeArray
    record: dict[str, Any]
    warnings: tuple[str, ...] = field(default=())
    expectation: Expectation | None = None


@dataclass(frozen=True)
class AlignedCase:
    """Hold an exam as scanned that the network can take.

    Attributes:
        target, reference: what is made, and whose grid it gets.
    """

    scans: dict[Modality, Scan]
    exam: AlignedExam
    brain: FoundBrain
    target: Modality
    reference: Modality


def complete_exam(
    sequences: Mapping[Modality, Volume],
    model: Model,
    *,
    target: Modality | None = None,
    reference: Modality | None = None,
    mask: Path | None = None,
    mask_of: Modality | None = None,
) -> CompletedExam:
    """Make the sequence that an exam lacks, in the grid of one of its own.

    Args and errors as `align_case`.
    """
    case = align_case(sequences, target=target, reference=reference, mask=mask, mask_of=mask_of)
    return synthesize_exam(case, model)


def align_case(
    sequences: Mapping[Modality, Volume],
    *,
    target: Modality | None = None,
    reference: Modality | None = None,
    mask: Path | None = None,
    mask_of: Modality | None = None,
) -> AlignedCase:
    """Bring an exam's sequences to one grid of 1 mm, and find the brain.

    Args:
        sequences: as scanned, on any grids.
        target: what to make; the one that lacks if not given. A sequence that is there is then not used.
        reference: whose grid and header the result has; the one of the same weighting if not given.
        mask: of the brain, on the grid of any of the sequences.
        mask_of: the sequence that it was drawn on, where several have its grid.

    Raises:
        CaseError: the exam cannot be done, or its alignment cannot be trusted; the message says why.
        VolumeError: a file cannot be used.
        UsageError: the brain cannot be looked for.
    """
    wanted = choose_target(sequences, target)
    scans = {m: scan_of(sequences[m]) for m in MODALITIES if m in sequences and m != wanted}
    kept = choose_reference(scans, wanted, reference)
    given = None if mask is None else read_mask(mask, scans, mask_of)
    exam = align(scans)
    brain = brain_of(exam, scans, given)
    if is_cut(brain.mask):
        exam = widen(exam, scans)
        brain = brain_of(exam, scans, given)
    check_brain(exam, brain.mask)
    return AlignedCase(scans, exam, brain, wanted, kept)


def synthesize_exam(case: AlignedCase, model: Model, target: Modality | None = None) -> CompletedExam:
    """Make a sequence of an aligned exam, and bring it into the grid of its reference.

    Args:
        target: another sequence that lacks; the case's own if not given.
    """
    exam, scans, brain = case.exam, case.scans, case.brain.mask
    wanted = target or case.target
    kept = case.reference if wanted == case.target else choose_reference(scans, wanted, None)
    inputs = {m: space.masked(v, brain, exam.seen[m]) for m, v in exam.volumes.items()}
    grids = _working_grid_of(exam, scans)
    chosen = maker_of(model, wanted, {m: scan.volume for m, scan in scans.items()})
    made = synthesize_case(
        {m: Volume(v, grids, sha256=scans[m].volume.sha256) for m, v in inputs.items()}, wanted, kept, chosen
    )
    synthesis = to_array(made.image, grids)
    covered = synthesis > 0
    native = space.to_reference(synthesis, covered, exam.grid, scans[kept].image, exam.transforms[kept])
    grid = scans[kept].volume.grid
    # A specialist may make it, and a refiner change it: the header and the record name both.
    fingerprint = fingerprint_of(chosen)
    image = to_image(scale_to_type(native, grid), grid, describe(chosen, wanted, len(inputs)))
    mark_inputs(image, {m: scan.volume.sha256 for m, scan in scans.items()})
    mark_expectation(image, made.expectation)
    record = {**_record(case, wanted, kept), "model": chosen.name, "model_sha256": fingerprint}
    strange = None
    if made.expectation is not None:
        record["expected"] = made.expectation.to_json()
        strange = made.expectation.warning("the exam", chosen.identity.name)
    notes = (
        *([] if strange is None else [strange]),
        *(note for scan in scans.values() for note in scan.volume.notes),
        *partial_views(exam, brain),
    )
    return CompletedExam(wanted, kept, image, exam.volumes, brain, synthesis, record, notes, made.expectation)


def maker_of(model: Model, target: Modality, sequences: Mapping[Modality, Volume]) -> Model:
    """Choose what makes a sequence of an exam, by how thick its thickest slices are.

    Args:
        sequences: as scanned.
    """
    return model.model_for(target, max(max(volume.grid.spacing) for volume in sequences.values()))


def _working_grid_of(exam: AlignedExam, scans: Mapping[Modality, Scan]) -> Grid:
    header = nib.Nifti1Header()
    affine = space.affine_of(exam.grid)
    header.set_data_shape(exam.grid.GetSize())
    header.set_data_dtype(np.float32)
    header.set_sform(affine, 1)
    header.set_zooms([space.WORKING_SPACING] * 3)
    x, y, z = exam.grid.GetSize()
    return Grid(scans[exam.anchor].volume.grid.path, (x, y, z), affine, header)


def _record(case: AlignedCase, target: Modality, reference: Modality) -> dict[str, Any]:
    """Tell what was done, for a record in JSON."""
    exam, scans, brain = case.exam, case.scans, case.brain.mask
    agreement = {m: round(dice, 4) for m, dice in case.brain.agreement.items()}
    return {
        "target": target,
        "reference": reference,
        "anchor": exam.anchor,
        "brain": {"ml": round(brain_ml(brain), 1), "from": case.brain.how, "dice": agreement},
        "sequences": {m: _sequence_record(exam, scan, m, brain) for m, scan in scans.items()},
    }


def _sequence_record(exam: AlignedExam, scan: Scan, modality: Modality, brain: MaskArray) -> dict[str, Any]:
    form: dict[str, Any] = {
        "file": str(scan.volume.grid.path),
        "sha256": scan.volume.sha256,
        "grid": scan.volume.grid.describe(),
        "coverage": round(space.coverage(brain, exam.seen[modality]), 4),
    }
    if (found := exam.alignments.get(modality)) is not None:
        form["alignment"] = {
            "degrees": round(found.degrees, 2),
            "moved_mm": round(found.moved, 2),
            "information": [round(v, 4) for v in (found.before, found.after)],
            "mirrored": round(found.mirrored, 4),
            "spread_mm": round(found.spread, 2),
            "kept_header": modality in exam.kept,
            "matrix": _matrix_of(exam.transforms[modality]),
        }
    return form


def _matrix_of(transform: sitk.Transform) -> list[list[float]]:
    """Give the 4 x 4 matrix from points of the grid to points of the sequence, millimetres L, P, S."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(axis)) - origin for axis in np.eye(3).tolist()]
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = np.stack(columns, axis=1), origin
    return [[round(float(v), 6) for v in row] for row in matrix]
