"""Draw one PNG per sequence or segmentation: three planes, the inputs beside the result and the truth."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.core.atomic_io import save_bytes
from app.core.constants import DISPLAY_NAMES, MODALITIES, SEGMENTATION, Modality
from app.core.errors import VolumeError
from app.core.plain_text import printable
from app.core.types import MaskArray, VolumeArray
from app.data.nifti_reader import load_volume
from app.preprocessing.normalization import rescale_as_scored
from app.report.plotting import figure_class

log = logging.getLogger(__name__)

_NOTICE = "synthetic, not for diagnosis"
_DPI = 110
#: Red, green, blue and opacity of each label.
_TINTS = np.array([[0, 0, 0, 0], [1, 0.1, 0.1, 0.55], [0.1, 0.9, 0.1, 0.4], [0.2, 0.4, 1, 0.6]], dtype=np.float32)


@dataclass(frozen=True)
class _Column:
    """Hold one volume and how it is shown.

    Attributes:
        volume: float, axes L, P, S, cropped to the brain.
        window: values of the darkest and the brightest colour.
        labels: uint8, same shape, drawn over it; None for none.
    """

    title: str
    volume: NDArray[np.floating[Any]]
    window: tuple[float, float]
    colours: str = "gray"
    synthetic: bool = False
    labels: NDArray[np.uint8] | None = None


def picture(
    inputs: Mapping[Modality, VolumeArray],
    target: Modality,
    synthesis: VolumeArray,
    truth: VolumeArray | None = None,
    lesion: MaskArray | None = None,
    title: str = "",
    confidence: VolumeArray | None = None,
) -> bytes:
    """Draw a PNG in radiological convention (the patient's right is on the left).

    Synthesis and truth are scaled as the challenge scores them: each by its own percentiles, since an absolute scale
    cannot be known. They share one window, the 1st to the 99th percentile of the truth's brain.

    Args:
        inputs, synthesis, truth: float32, axes L, P, S, one shape.
        lesion: where to cut (the largest section along each axis); the brain if not given or empty.
        confidence: float32 in [0, 1], same shape, where a model gives one.
    """
    box = _brain_box(synthesis > 0)
    centre = _centre(synthesis[box] > 0 if lesion is None or not lesion.any() else lesion[box])
    columns = [
        *(
            _Column(f"{DISPLAY_NAMES[m]} (input)", inputs[m][box], _window(inputs[m][box]))
            for m in MODALITIES
            if m in inputs
        ),
        *_result_columns(target, synthesis, truth, box),
    ]
    if confidence is not None:
        columns.append(_Column("confidence\n(bright: sure)", confidence[box], (0.0, 1.0), "viridis"))
    return _draw(columns, centre, title)


def segmentation_picture(inputs: Mapping[Modality, VolumeArray], labels: NDArray[np.uint8], title: str = "") -> bytes:
    """Draw a PNG of a segmentation over the sequences, cut where the tumour is largest.

    Args:
        inputs: float32, axes L, P, S, one shape.
        labels: 0 to 3, same shape.
    """
    box = _brain_box(np.any([v > 0 for v in inputs.values()], axis=0))
    shown = [(m, inputs[m][box]) for m in MODALITIES if m in inputs]
    plain = [_Column(DISPLAY_NAMES[m], v, _window(v)) for m, v in shown]
    name, over = next(((m, v) for wanted in ("t2f", "t1c") for m, v in shown if m == wanted), shown[0])
    drawn = _Column(
        f"tumour on {DISPLAY_NAMES[name]}\n(red core, green oedema,\nblue enhancing)", over, _window(over),
        synthetic=True, labels=labels[box],
    )  # fmt: skip
    tumour = labels[box] > 0
    return _draw([*plain, drawn], _centre(tumour if tumour.any() else over > 0), title)


def clinic_picture(
    aligned: Mapping[Modality, VolumeArray], brain: MaskArray, target: Modality, synthesis: VolumeArray, title: str
) -> bytes:
    """Draw a PNG of an exam as scanned: its aligned sequences with the brain's outline, and what was made.

    Args:
        aligned: float32 with skull, axes L, P, S, one shape.
        brain: the mask, same shape.
        synthesis: float32, same shape, 0 outside the brain.
    """
    from scipy import ndimage

    box, green = _brain_box(brain, margin=24), 2
    outline = (green * (brain ^ ndimage.binary_erosion(brain)))[box].astype(np.uint8)
    columns = [
        _Column(f"{DISPLAY_NAMES[m]} (aligned)", aligned[m][box], _window(aligned[m][box]), labels=outline)
        for m in MODALITIES
        if m in aligned
    ]
    made = synthesis[box]
    columns.append(_Column(f"{DISPLAY_NAMES[target]} (synthesis)", made, _window(made), synthetic=True))
    return _draw(columns, _centre(brain[box]), title)


def _result_columns(
    target: Modality, synthesis: VolumeArray, truth: VolumeArray | None, box: tuple[slice, ...]
) -> list[_Column]:
    """Show the synthesis; and where the truth is known, that and their difference."""
    name = DISPLAY_NAMES[target]
    scaled = rescale_as_scored(synthesis)[box]
    if truth is None:
        return [_Column(f"{name} (synthesis)", scaled, _window(scaled), synthetic=True)]
    real = rescale_as_scored(truth)[box]
    shared = _window(real)
    return [
        _Column(f"{name} (synthesis)", scaled, shared, synthetic=True),
        _Column(f"{name} (truth)", real, shared),
        _Column("synthesis - truth\n(red: too bright)", scaled - real, (-0.5, 0.5), "berlin"),
    ]


def _draw(columns: Sequence[_Column], centre: tuple[int, int, int], title: str) -> bytes:
    """Draw three planes of every volume, one volume per column."""
    figure = figure_class()(figsize=(max(2.2 * len(columns), 5.0), 6.9), facecolor="black", layout="constrained")
    axes = figure.subplots(3, len(columns), squeeze=False)
    for number, column in enumerate(columns):
        _draw_column(axes[:, number], column, centre)
    for number, column in enumerate(columns):
        if column.synthetic:
            _mark_synthetic(axes[:, number])
    _letters(axes)
    figure.suptitle(printable(title), color="white", fontsize=10, parse_math=False)
    figure.supxlabel("radiological convention: the patient's right is on the left", color="0.7", fontsize=8)
    buffer = io.BytesIO()
    # Without the software's name and version, the same pixels give the same bytes.
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def _draw_column(panels: Any, column: _Column, centre: tuple[int, int, int]) -> None:
    low, high = column.window
    for panel, plane in zip(panels, _planes(column.volume, centre), strict=True):
        panel.imshow(plane, cmap=column.colours, vmin=low, vmax=high, interpolation="nearest")
        panel.set_axis_off()
    if column.labels is not None:
        for panel, plane in zip(panels, _planes(column.labels, centre), strict=True):
            # Red, green, blue, as viewers of BraTS colour the labels; nothing where there is none.
            panel.imshow(_TINTS[plane], interpolation="nearest")
    panels[0].set_title(column.title, color="white", fontsize=9)


def _mark_synthetic(panels: Any) -> None:
    for panel in panels:
        panel.text(0.5, -0.01, _NOTICE, transform=panel.transAxes, color="#ffb000", fontsize=7, ha="center", va="top")


def shrink(png: bytes, scale: float = 0.68) -> bytes:
    """Make a small JPEG of a PNG, for pages of many subjects."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        small = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
    buffer = io.BytesIO()
    small.save(buffer, format="jpeg", quality=80)
    return buffer.getvalue()


def _planes(volume: NDArray[Any], centre: tuple[int, int, int]) -> list[NDArray[Any]]:
    """Cut axial, coronal and sagittal: rows from top to bottom, columns from left to right."""
    x, y, z = centre
    return [volume[:, :, z].T, volume[:, y, ::-1].T, volume[x, :, ::-1].T]


def _letters(axes: Any) -> None:
    """Name the sides of the patient at the edges of the first column."""
    style = {"color": "#ffd75f", "fontsize": 9, "va": "center", "ha": "center"}
    edges = ((0.04, 0.5), (0.96, 0.5), (0.5, 0.96), (0.5, 0.07))
    for row, letters in enumerate(("RLAP", "RLSI", "APSI")):
        for letter, (x, y) in zip(letters, edges, strict=True):
            axes[row, 0].text(x, y, letter, transform=axes[row, 0].transAxes, **style)


def _window(volume: NDArray[np.floating[Any]]) -> tuple[float, float]:
    brain = volume[volume > 0]
    if brain.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(brain, [1, 99])
    return float(low), float(max(high, low + 1e-6))


def _brain_box(brain: MaskArray, margin: int = 14) -> tuple[slice, ...]:
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
    areas = [mask.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    x, y, z = (int(a.argmax()) for a in areas)
    return x, y, z


#: Beyond this many subjects only those with warnings, and the first ones, are pictured, to keep the page small.
MOST_PICTURES = 140


def draw_files(
    subject: str,
    inputs: Mapping[Modality, Path],
    target: Modality,
    synthesis: Path,
    folder: Path,
    truth: Path | None = None,
    segmentation: Path | None = None,
    confidence: Path | None = None,
) -> bytes:
    """Write `pictures/<subject>-<target>.png` and give a small JPEG of it.

    Args:
        folder: gets the folder `pictures`.

    Returns:
        The JPEG; empty, with a warning in the log, where a file cannot be read.

    Raises:
        OutputError: the PNG cannot be written.
    """
    try:
        png = picture(
            {m: load_volume(f).data for m, f in inputs.items()},
            target,
            load_volume(synthesis, strict=True).data,
            None if truth is None else load_volume(truth).data,
            None if segmentation is None else load_volume(segmentation, strict=True).data > 0,
            title=subject,
            confidence=None if confidence is None else load_volume(confidence, strict=True).data,
        )
    except (VolumeError, ValueError) as error:
        log.warning("No picture of %s: %s", subject, error)
        return b""
    return _save(png, folder, f"{subject}-{target}.png")


def draw_segmentation(subject: str, inputs: Mapping[Modality, Path], labels: Path, folder: Path) -> bytes:
    """Write `pictures/<subject>-seg.png` and give a small JPEG of it; result and errors as `draw_files`."""
    try:
        volume = load_volume(labels, strict=True).data
        png = segmentation_picture(
            {m: load_volume(f).data for m, f in inputs.items()},
            np.clip(np.rint(volume), 0, 3).astype(np.uint8),
            subject,
        )
    except (VolumeError, ValueError) as error:
        log.warning("No picture of %s: %s", subject, error)
        return b""
    return _save(png, folder, f"{subject}-{SEGMENTATION}.png")


def _save(png: bytes, folder: Path, name: str) -> bytes:
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    save_bytes(png, folder / "pictures" / name)
    return shrink(png)
