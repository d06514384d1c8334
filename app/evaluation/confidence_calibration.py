"""Written maps of confidence against the errors that were really made.

A map holds c = 1 / (1 + b), b being the absolute error that the model expects in deviations of the real sequence over
its brain. What is observed is measured in the same unit. How bright and how contrasty the missing scan would have been
is no part of b: the unit of an MRI is arbitrary, and the file's was guessed from the other sequences. So each made
volume is first brought to the real one's by the straight line through its brain that errs least (two numbers a volume).
What the error is without that line is reported beside it, as `as written`.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.core.constants import MODALITIES
from app.core.errors import VolumeError
from app.core.types import VolumeArray
from app.data.nifti_reader import load_volume
from app.evaluation.metrics.calibration import BINS, Calibration, calibrate
from app.evaluation.scoring import Pair
from app.evaluation.statistics import markdown

#: Voxels of each volume that are looked at, spread evenly over its brain; memory stays bounded with any number.
VOXELS = 50_000


@dataclass
class Errors:
    """Of one volume.

    Attributes:
        expected, observed: float32, absolute errors in deviations of the real sequence, at voxels of the brain.
        as_written: mean of the observed errors without the line.
        problems: why there are none.
    """

    subject: str
    modality: str
    expected: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    observed: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    as_written: float = float("nan")
    problems: list[str] = field(default_factory=list)


def map_of(pair: Pair, folder: Path) -> Path:
    """Where `synthesize --confidence-dir` put the map of a volume."""
    return folder / f"{pair.subject}-{pair.modality}-confidence.nii.gz"


def errors_of(pair: Pair, folder: Path) -> Errors:
    """Expected and observed errors of one volume; what cannot be compared becomes a problem that names the file."""
    errors = Errors(pair.subject, pair.modality)
    path = map_of(pair, folder)
    try:
        made, truth, sure = (load_volume(f, strict=True) for f in (pair.prediction, pair.reference, path))
        for volume in (made, sure):
            if not volume.grid.same_as(truth.grid):
                raise VolumeError(f"{volume.grid.path} is not on the grid of {pair.reference}.")
        inside = (truth.data > 0) & (sure.data > 0)
        if sure.data.max() > 1 or int(inside.sum()) < BINS:
            raise VolumeError(f"{path} is no map of confidence of this brain: it needs values above 0, up to 1, in it.")
        errors.expected, errors.observed, errors.as_written = compare(
            made.data[inside], truth.data[inside], sure.data[inside]
        )
    except VolumeError as error:
        errors.problems.append(str(error))
    return errors


def compare(
    made: VolumeArray, truth: VolumeArray, confidence: VolumeArray
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Expected and observed absolute errors, and the mean observed one as written.

    Args:
        made, truth: float32 (n,), intensities in the brain.
        confidence: float32 (n,), above 0 and up to 1.

    Returns:
        Float32 (at most `VOXELS`,) twice, and a number; all in deviations of `truth`.
    """
    one, other = made.astype(np.float64), truth.astype(np.float64)
    unit = max(float(other.std()), 1e-9)
    moved = one - one.mean()
    spread = float(moved @ moved)
    slope = float(moved @ (other - other.mean())) / spread if spread > 0 else 0.0
    observed = np.abs(slope * moved + other.mean() - other) / unit
    expected = 1 / confidence.astype(np.float64) - 1
    chosen = np.linspace(0, len(one) - 1, min(VOXELS, len(one))).round().astype(np.int64)
    return (
        expected[chosen].astype(np.float32),
        observed[chosen].astype(np.float32),
        float(np.abs(one - other).mean() / unit),
    )


def calibrations(errors: Sequence[Errors]) -> dict[str, Calibration]:
    """Per group (`all`, and each sequence that there is)."""
    found = {}
    for group in ("all", *MODALITIES):
        members = [e for e in errors if e.expected.size and group in {"all", e.modality}]
        if members:
            expected, observed = (np.concatenate([getattr(e, n) for e in members]) for n in ("expected", "observed"))
            found[group] = calibrate(expected, observed)
    return found


def rows(found: Mapping[str, Calibration], errors: Sequence[Errors]) -> list[list[str]]:
    """Header and cells: per group the means, the calibration error, the ranking, and each bin as expected/observed."""
    table = [["confidence", "n", "expected", "observed", "as written", "calibration error", "rank correlation",
              *(f"bin {i}" for i in range(1, BINS + 1))]]  # fmt: skip
    for group, c in found.items():
        members = [e for e in errors if e.expected.size and group in {"all", e.modality}]
        means = [float((values * c.counts).sum() / c.counts.sum()) for values in (c.expected, c.observed)]
        numbers = [*means, float(np.mean([e.as_written for e in members])), c.error, c.correlation]
        bins = [f"{a:.3f}/{b:.3f}" for a, b in zip(c.expected, c.observed, strict=True)]
        table.append([group, str(len(members)), *(f"{v:.3f}" for v in numbers), *bins])
    return table


def table(found: Mapping[str, Calibration], errors: Sequence[Errors]) -> str:
    """`rows` as a Markdown table; errors in deviations of the real sequence."""
    return markdown(rows(found, errors))


def to_json(found: Mapping[str, Calibration]) -> dict[str, Any]:
    """For `summary.json`."""
    return {
        group: {"expected": c.expected.tolist(), "observed": c.observed.tolist(), "counts": c.counts.tolist(),
                "error": c.error, "correlation": c.correlation}
        for group, c in found.items()
    }  # fmt: skip


def plot(found: Mapping[str, Calibration]) -> bytes:
    """A PNG: observed over expected error, one line per group, beside the diagonal on which they should lie."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.0, 5.0), layout="constrained")
    panel: Any = figure.subplots()
    top = 1.05 * max(float(max(c.expected.max(), c.observed.max())) for c in found.values())
    panel.plot([0, top], [0, top], "--", color="0.6", label="as expected")
    for group, c in found.items():
        wide = 2.2 if group == "all" else 1.0
        panel.plot(c.expected, c.observed, ".-", linewidth=wide, label=f"{group} (error {c.error:.3f})")
    panel.set(xlim=(0, top), ylim=(0, top), xlabel="expected absolute error", ylabel="observed absolute error")
    panel.set_title("Ten bins of equal count, in deviations of the real sequence", fontsize=10)
    panel.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()
