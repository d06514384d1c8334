"""The head of `helpers` as DICOM."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from tests.dicom.helpers import T1, T2, write_series
from tests.inference.clinic.helpers import write_heads


def write_dicom_head(folder: Path, heads: Path, **identity: str) -> Path:
    """Write T1c, T1n and T2w as series 1 to 3, each in a folder of its own.

    Args:
        heads: where the same as NIfTI is written.
        identity: `study` and `patient`.
    """
    files = write_heads(heads)
    for number, (modality, header) in enumerate(
        {"t1c": T1 | {"ContrastBolusAgent": "Gd"}, "t1n": T1, "t2w": T2}.items(), start=1
    ):
        image = nib.load(files[modality])
        volume = np.asarray(image.dataobj).astype(np.int16).transpose(1, 0, 2)
        spacing = tuple(float(v) for v in np.array(image.header.get_zooms())[[1, 0, 2]])
        origin = tuple(float(v) for v in image.affine[:3, 3] * [-1, -1, 1])
        write_series(folder / str(number), volume, number=number, origin=origin, spacing=spacing, **header, **identity)
    return folder
