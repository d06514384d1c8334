"""How well an exam as scanned is aligned and completed: each sequence dropped in turn and made again.

Usage: `python -m benchmarks clinic --study DIR [--model NAME] [--weights DIR]`, where DIR holds the four sequences of
one exam as scanned, in NIfTI. Two tables are printed. The first moves each sequence by known motions and tells how far
from them registration ends, at the outer brain. The second compares what is made with the real sequence, in that one's
own grid, inside the brain: correlation, and SSIM of slices after a straight line for brightness, beside the regression
and the best copied sequence.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from app.core.config import WEIGHTS_DIR
from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError
from app.data.discovery import scan
from app.inference.clinic.alignment import align
from app.inference.clinic.pipeline import complete_exam
from app.inference.clinic.scans import Scan, read_sequence, scan_of
from app.inference.models import Model
from app.inference.synthesizer import Synthesizer
from app.preprocessing.registration import register
from app.preprocessing.similarity import ssim_map
from app.preprocessing.standard_space import to_reference

#: Degrees and millimetres.
_MOTIONS = ((8.0, 10.0), (15.0, 25.0))
_RADIUS = 70.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", type=lambda text: Path(text).resolve(), required=True)
    parser.add_argument("--model", help="default: the manifest's")
    parser.add_argument("--weights", type=Path, default=WEIGHTS_DIR)
    options = parser.parse_args()
    cases = [case for case in scan(options.study).cases if len(case.files) == len(MODALITIES)]
    if len(cases) != 1:
        raise UsageError(f"{options.study} holds {len(cases)} exams with four sequences; give the folder of one.")
    scans = {m: scan_of(read_sequence(cases[0].files[m])) for m in MODALITIES}
    _show_registration(scans)
    _show_synthesis(scans, Synthesizer(options.model, weights=options.weights).model)


def _show_registration(scans: Mapping[Modality, Scan]) -> None:
    fixed = scans["t1n"].image
    motions = " | ".join(f"{degrees:g}°, {millimetres:g} mm" for degrees, millimetres in _MOTIONS)
    print(f"| onto T1n | information before, after | mirrored | {motions} |")
    print("|---" * (3 + len(_MOTIONS)) + "|")
    for modality, moving in scans.items():
        if modality == "t1n":
            continue
        found = register(fixed, moving.image)
        ends = [_recovery(fixed, moving.image, found.transform, *motion) for motion in _MOTIONS]
        cells = " | ".join(f"{end:.3f} mm off" for end in ends)
        print(f"| {modality} | {found.before:.3f}, {found.after:.3f} | {found.mirrored:.3f} | {cells} |", flush=True)


def _recovery(
    fixed: sitk.Image, moving: sitk.Image, right: sitk.Transform, degrees: float, millimetres: float
) -> float:
    """Moves an image by its header; tells how far from that motion registration ends, at most."""
    axis, way = np.array([1.0, -0.5, 0.33]), np.array([0.6, -0.7, 0.4])
    turn = sitk.VersorRigid3DTransform()
    turn.SetCenter(_middle(moving))
    turn.SetRotation((axis / np.linalg.norm(axis)).tolist(), float(np.radians(degrees)))
    turn.SetTranslation((way * millimetres / np.linalg.norm(way)).tolist())
    moved = sitk.Image(moving)
    moved.SetOrigin(turn.TransformPoint(moving.GetOrigin()))
    matrix = np.array(turn.GetMatrix()).reshape(3, 3) @ np.array(moving.GetDirection()).reshape(3, 3)
    moved.SetDirection(matrix.ravel().tolist())
    found, expected = register(fixed, moved).transform, sitk.CompositeTransform([turn, right])
    points = [(np.array(_middle(fixed)) + s * _RADIUS * np.eye(3)[a]).tolist() for a in range(3) for s in (-1, 1)]
    pairs = [np.subtract(found.TransformPoint(p), expected.TransformPoint(p)) for p in points]
    return max(float(np.linalg.norm(pair)) for pair in pairs)


def _middle(image: sitk.Image) -> list[float]:
    return list(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))


def _show_synthesis(scans: Mapping[Modality, Scan], model: Model) -> None:
    models = {"model": model, "regression": Synthesizer("regression").model}
    print("\n| made | r, SSIM | regression | best copy |\n|---|---|---|---|")
    for target, real in scans.items():
        others = {m: s for m, s in scans.items() if m != target}
        exam = align(others)
        # The real one takes part in nothing but the comparison.
        way = register(others[exam.anchor].image, real.image).transform
        cells = []
        for chosen in models.values():
            done = complete_exam({m: s.volume for m, s in others.items()}, chosen, target=target)
            made = to_reference(done.synthesis, done.synthesis > 0, exam.grid, real.image, way)
            cells.append(_cell(made, real))
        copies = {
            m: to_reference(v * done.brain, done.brain, exam.grid, real.image, way) for m, v in exam.volumes.items()
        }
        best = max(copies, key=lambda m: _compare(copies[m], real)[0])
        cells.append(f"{_cell(copies[best], real)} ({best})")
        print(f"| {target} | {' | '.join(cells)} |", flush=True)


def _cell(made: NDArray[Any], real: Scan) -> str:
    correlation, similarity = _compare(made, real)
    return f"{correlation:.3f}, {similarity:.3f}"


def _compare(made: NDArray[Any], real: Scan) -> tuple[float, float]:
    """Correlation, and mean SSIM of slices after a straight line, where both have brain."""
    truth = real.volume.data.astype(np.float64)
    inside = (made > 0) & (truth > 0)
    slope, level = np.polyfit(made[inside], truth[inside], 1)
    limit = float(np.percentile(truth[inside], 99.5))
    one, two = (np.where(inside, v, 0) / limit for v in (made * slope + level, truth))
    slices = [ssim_map(one[..., i], two[..., i], 1.0) for i in range(one.shape[2])]
    return float(np.corrcoef(made[inside], truth[inside])[0, 1]), float(np.stack(slices, axis=2)[inside].mean())


if __name__ == "__main__":
    main()
