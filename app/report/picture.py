"""One PNG per synthesised sequence: three planes through the point of interest, inputs beside result and truth."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from app.constants import DISPLAY_NAMES, MODALITIES, Modality
from app.metrics.official import normalise
from app.types import MaskArray, VolumeArray

_NOTICE = "synthetic, not for diagnosis"


def picture(
    inputs: Mapping[Modality, VolumeArray],
    target: Modality,
    synthesis: VolumeArray,
    truth: VolumeArray | None = None,
    lesion: MaskArray | None = None,
    title: str = "",
    kind: Literal["png", "jpeg"] = "png",
) -> bytes:
    """A PNG, or a small JPEG, in radiological convention (the patient's right is on the left).

    Args:
        inputs, synthesis, truth: float32, axes L, P, S, one shape. Synthesis and truth are scaled as the challenge
            scores them (each by its own percentiles: an absolute scale cannot be known) and then share one window,
            the 1st to the 99th percentile of the truth's brain.
        lesion: where to cut; the brain's centre if not given or empty.
        kind: `jpeg` is for pages of many subjects.
    """
    from matplotlib.figure import Figure

    box = _brain_box(synthesis > 0)
    centre = _centre(synthesis[box] > 0 if lesion is None or not lesion.any() else lesion[box])
    columns: list[tuple[str, NDArray[np.floating[Any]], tuple[float, float], str]] = [
        (f"{DISPLAY_NAMES[m]} (input)", inputs[m][box], _window(inputs[m][box]), "gray")
        for m in MODALITIES
        if m in inputs
    ]
    made = normalise(synthesis)[box]
    real = None if truth is None else normalise(truth)[box]
    shared = _window(made if real is None else real)
    columns.append((f"{DISPLAY_NAMES[target]}\n{_NOTICE}", made, shared, "gray"))
    if real is not None:
        columns.append((f"{DISPLAY_NAMES[target]} (truth)", real, shared, "gray"))
        columns.append(("synthesis - truth\n(red: too bright)", made - real, (-0.5, 0.5), "RdBu_r"))
    figure = Figure(figsize=(2.2 * len(columns), 6.9), facecolor="black", layout="constrained")
    axes = figure.subplots(3, len(columns), squeeze=False)
    for column, (name, volume, (low, high), colours) in enumerate(columns):
        for row, plane in enumerate(_planes(volume, centre)):
            panel = axes[row, column]
            panel.imshow(plane, cmap=colours, vmin=low, vmax=high, interpolation="nearest")
            panel.set_axis_off()
        axes[0, column].set_title(name, color="white", fontsize=9)
    _letters(axes)
    figure.suptitle(title, color="white", fontsize=10)
    buffer = io.BytesIO()
    if kind == "jpeg":
        figure.savefig(buffer, format="jpeg", dpi=75, pil_kwargs={"quality": 80})
    else:
        # Without the software's name and version, the same pixels give the same bytes.
        figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _planes(volume: NDArray[np.floating[Any]], centre: tuple[int, int, int]) -> list[NDArray[np.floating[Any]]]:
    """Axial, coronal, sagittal, each as rows from top to bottom and columns from left to right."""
    x, y, z = centre
    return [volume[:, :, z].T, volume[:, y, ::-1].T, volume[x, :, ::-1].T]


def _letters(axes: Any) -> None:
    style = {"color": "0.7", "fontsize": 8, "va": "center", "ha": "center"}
    for row, (left, right) in enumerate((("R", "L"), ("R", "L"), ("A", "P"))):
        panel = axes[row, 0]
        panel.text(0.03, 0.5, left, transform=panel.transAxes, **style)
        panel.text(0.97, 0.5, right, transform=panel.transAxes, **style)


def _window(volume: NDArray[np.floating[Any]]) -> tuple[float, float]:
    brain = volume[volume > 0]
    if brain.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(brain, [1, 99])
    return float(low), float(max(high, low + 1e-6))


def _brain_box(brain: MaskArray, margin: int = 4) -> tuple[slice, ...]:
    box = []
    for axis in range(3):
        filled = np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis)))
        low, high = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, brain.shape[axis])
        box.append(slice(max(0, low - margin), high + margin))
    return tuple(box)


def _centre(mask: MaskArray) -> tuple[int, int, int]:
    if not mask.any():
        x, y, z = (n // 2 for n in mask.shape)
        return x, y, z
    x, y, z = (round(float(axis.mean())) for axis in np.nonzero(mask))
    return x, y, z
