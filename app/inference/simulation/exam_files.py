"""Write an exam that nobody scanned: four sequences and a segmentation, each header saying so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from app.core.atomic_io import save_together
from app.core.constants import SEGMENTATION, Modality
from app.core.types import VolumeArray
from app.data.nifti_writer import DESCRIPTION, encode_image
from app.inference.simulation.atlas import Frame

#: Record of a run, in its output.
RECORD: Final = "simulated.json"
#: A brightest voxel below this would leave too few grey levels; such units are stretched to that many.
FEW_LEVELS, LEVELS = 64.0, 1000.0


def save_exam(
    folder: Path,
    volumes: Mapping[Modality, VolumeArray],
    labels: NDArray[np.uint8],
    frame: Frame,
    text: str,
    beside: Mapping[Path, NDArray[Any]] | None = None,
) -> None:
    """Write `<ID>-<sequence>.nii.gz` and `<ID>-seg.nii.gz` to a new folder named `<ID>`.

    Args:
        volumes: whole numbers, L x P x S on the frame; labels: uint8 of that shape.
        text: the description in each header; it says what the exam is, and is cut where it is too long.
        beside: more files of the exam, and what they hold.

    Raises:
        OutputError: nothing of an exam that could not be written is kept.
    """
    arrays: dict[str, NDArray[Any]] = {m: _stored(v) for m, v in volumes.items()}
    files = {folder / f"{folder.name}-{k}.nii.gz": a for k, a in {**arrays, SEGMENTATION: labels}.items()}
    contents = {path: encode_image(_image(a, frame, text)) for path, a in {**files, **(beside or {})}.items()}
    folder.mkdir(parents=True)
    try:
        save_together(contents)
    except BaseException:
        for path in contents:
            path.unlink(missing_ok=True)
        folder.rmdir()
        raise


def _stored(volume: VolumeArray) -> NDArray[Any]:
    return volume.astype(np.int16) if volume.max() <= np.iinfo(np.int16).max else volume


def _image(array: NDArray[Any], frame: Frame, text: str) -> nib.Nifti1Image:
    image = nib.Nifti1Image(array, frame.matrix)
    image.set_sform(frame.matrix, code=1)
    image.set_qform(frame.matrix, code=1)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = text.encode("ascii", "replace")[:DESCRIPTION]
    return image
