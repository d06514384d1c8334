"""Compare written maps of confidence with observed errors.

A map holds c = 1 / (1 + b). Here b is the absolute error that the model expects, in deviations of the real sequence
over its brain. Observed errors have the same unit. Brightness and contrast of the missing scan are no part of b: the
unit of an MRI is arbitrary, and the file's was guessed from the other sequences. So each synthesised volume is first
fitted to the real one by a straight line: least squares over the brain, two numbers a volume. The error without that
line is reported beside it, as `as written`.
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
from app.report.plotting import figure_class

#: Sampled voxels of each volume, spread evenly over its brain: memory stays bounded with any number of volumes.
VOXELS = 50_000


@dataclass
class ErrorSample:
    """Hold expected and observed errors at voxels of one volume.

    Attributes:
        expected, observed: float32, absolute errors in deviations of the real sequence, at voxels of the brain.
        as_written: mean of the observed errors without the line.
        problems: the reason why there are none.
    """

    subject: str
    modality: str
    expected: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    observed: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    as_written: float = float("nan")
    problems: list[str] = field(default_factory=list)


def map_path(pair: Pair, folder: Path) -> Path:
    """Name the map of a volume as `synthesize --confidence-dir` does."""
    return folder / f"{pair.subject}-{pair.modality}-confidence.nii.gz"


def sample_errors(pair: Pair, folder: Path) -> ErrorSample:
    """Sample the errors of one volume; an unusable file becomes a problem."""
    sample = ErrorSample(pair.subject, pair.modality)
    path = map_path(pair, folder)
    try:
        synthesis, truth, confidence = (load_volume(f, strict=True) for f in (pair.prediction, pair.reference, path))
        for volume in (synthesis, confidence):
            if not volume.grid.same_as(truth.grid):
                raise VolumeError(f"{volume.grid.path} is not on the grid of {pair.reference}.")
        inside = (truth.data > 0) & (confidence.data > 0)
        if confidence.data.max() > 1 or int(inside.sum()) < BINS:
            raise VolumeError(f"{path} is no map of confidence of this brain: it needs values above 0, up to 1, in it.")
        sample.expected, sample.observed, sample.as_written = compare_errors(
            synthesis.data[inside], truth.data[inside], confidence.data[inside]
        )
    except VolumeError as error:
        sample.problems.append(str(error))
    return sample


def compare_errors(
    synthesis: VolumeArray, truth: VolumeArray, confidence: VolumeArray
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Return expected and observed absolute errors, and the mean observed one as written.

    Args:
        synthesis, truth: float32 (n,), intensities in the brain.
        confidence: float32 (n,), above 0 and up to 1.

    Returns:
        Float32 (at most `VOXELS`,) twice, and a number; all in deviations of `truth`.
    """
    one, other = synthesis.astype(np.float64), truth.astype(np.float64)
    unit = max(float(other.std()), 1e-9)
    centred = one - one.mean()
    spread = float(centred @ centred)
    slope = float(centred @ (other - other.mean())) / spread if spread > 0 else 0.0
    observed = np.abs(slope * centred + other.mean() - other) / unit
    expected = 1 / confidence.astype(np.float64) - 1
    indices = np.linspace(0, len(one) - 1, min(VOXELS, len(one))).round().astype(np.int64)
    return (
        expected[indices].astype(np.float32),
        observed[indices].astype(np.float32),
        float(np.abs(one - other).mean() / unit),
    )


def calibrations(samples: Sequence[ErrorSample]) -> dict[str, Calibration]:
    """Calibrate each group: `all`, and each sequence that there is."""
    groups = {}
    for group in ("all", *MODALITIES):
        if members := _members(samples, group):
            expected, observed = (np.concatenate([getattr(s, n) for s in members]) for n in ("expected", "observed"))
            groups[group] = calibrate(expected, observed)
    return groups


def rows(groups: Mapping[str, Calibration], samples: Sequence[ErrorSample]) -> list[list[str]]:
    """Return header and cells of the table, one row per group; bins as expected/observed."""
    table = [["confidence", "n", "expected", "observed", "as written", "calibration error", "rank correlation",
              *(f"bin {i}" for i in range(1, BINS + 1))]]  # fmt: skip
    for group, c in groups.items():
        members = _members(samples, group)
        means = [float((values * c.counts).sum() / c.counts.sum()) for values in (c.expected, c.observed)]
        numbers = [*means, float(np.mean([s.as_written for s in members])), c.error, c.correlation]
        bins = [f"{a:.3f}/{b:.3f}" for a, b in zip(c.expected, c.observed, strict=True)]
        table.append([group, str(len(members)), *(f"{v:.3f}" for v in numbers), *bins])
    return table


def table(groups: Mapping[str, Calibration], samples: Sequence[ErrorSample]) -> str:
    """Format `rows` as a Markdown table; errors in deviations of the real sequence."""
    return markdown(rows(groups, samples))


def to_json(groups: Mapping[str, Calibration]) -> dict[str, Any]:
    """Return the entry of `summary.json`."""
    return {
        group: {"expected": c.expected.tolist(), "observed": c.observed.tolist(), "counts": c.counts.tolist(),
                "error": c.error, "correlation": c.correlation}
        for group, c in groups.items()
    }  # fmt: skip


def plot(groups: Mapping[str, Calibration]) -> bytes:
    """Plot observed over expected error as a PNG, one line per group."""
    figure = figure_class()(figsize=(5.0, 5.0), layout="constrained")
    panel: Any = figure.subplots()
    top = 1.05 * max(float(max(c.expected.max(), c.observed.max())) for c in groups.values())
    panel.plot([0, top], [0, top], "--", color="0.6", label="as expected")
    for group, c in groups.items():
        wide = 2.2 if group == "all" else 1.0
        panel.plot(c.expected, c.observed, ".-", linewidth=wide, label=f"{group} (error {c.error:.3f})")
    panel.set(xlim=(0, top), ylim=(0, top), xlabel="expected absolute error", ylabel="observed absolute error")
    panel.set_title("Ten bins of equal count, in deviations of the real sequence", fontsize=10)
    panel.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def _members(samples: Sequence[ErrorSample], group: str) -> list[ErrorSample]:
    return [s for s in samples if s.expected.size and group in {"all", s.modality}]
