"""Open NRRD and MetaImage files, through SimpleITK."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from app.core.errors import VolumeError
from app.core.types import Affine
from app.data.formats.contents import READ_ERRORS, FileStamp, damaged
from app.data.formats.stored_image import StoredImage, new_header

_ERRORS: Final[tuple[type[Exception], ...]] = (*READ_ERRORS, RuntimeError, HeaderDataError)
_NRRD: Final = b"NRRD"
_META: Final = re.compile(rb"\s*(ObjectType|NDims|Comment)\s*=", re.IGNORECASE)
#: The file that holds a detached header's voxels, of both formats.
_DETACHED: Final = re.compile(rb"^(?:data ?file:|ElementDataFile\s*=)[ \t]*([^\r\n]+)", re.IGNORECASE | re.MULTILINE)
_LPS_TO_RAS: Final = np.diag([-1.0, -1.0, 1.0])


def open_itk(path: Path, head: bytes, compressed: bool, stamp: FileStamp) -> StoredImage | None:
    """Open a NRRD or MetaImage file; None where it is neither.

    Raises:
        VolumeError: it is damaged, or takes its voxels from elsewhere.
    """
    if compressed or not (head.startswith(_NRRD) or _META.match(head)):
        return None
    # Imported late: only such files need it.
    import SimpleITK as sitk

    _check_detached(path, head)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        reader.ReadImageInformation()
        shape = tuple(int(n) for n in reader.GetSize())
        if reader.GetNumberOfComponents() != 1:
            raise VolumeError(
                f"{path} has voxels that are no plain numbers (colour, say); export it with one number per voxel."
            )
        affine = _itk_affine(reader)
        dtype = np.dtype(sitk.GetArrayViewFromImage(sitk.Image([1] * len(shape), reader.GetPixelID())).dtype)
        header = new_header(shape, dtype, affine)
    except _ERRORS as error:
        raise VolumeError(damaged(path, _first_line(error))) from None

    def read() -> tuple[NDArray[np.float32], str]:
        try:
            values = sitk.GetArrayFromImage(reader.Execute())
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except _ERRORS as error:
            raise VolumeError(damaged(path, _first_line(error))) from None
        return np.ascontiguousarray(values.T, dtype=np.float32), digest

    return StoredImage(path, header, affine, shape, stamp, True, read)


def _itk_affine(reader: Any) -> Affine:
    """Return the map from a voxel index to NIfTI's R, A, S millimetres; ITK's world is L, P, S."""
    count = len(reader.GetSize())
    direction = np.asarray(reader.GetDirection(), dtype=np.float64).reshape(count, count)
    matrix, origin = direction * np.asarray(reader.GetSpacing()), np.asarray(reader.GetOrigin())
    affine = np.eye(4)
    axes = min(count, 3)
    affine[:axes, :axes] = _LPS_TO_RAS[:axes, :axes] @ matrix[:axes, :axes]
    affine[:axes, 3] = _LPS_TO_RAS[:axes, :axes] @ origin[:axes]
    return affine


def _check_detached(path: Path, head: bytes) -> None:
    """Refuse a header whose voxels lie elsewhere than beside it."""
    match = _DETACHED.search(head)
    name = match[1].strip().decode("utf-8", "replace") if match else "LOCAL"
    if name.upper() != "LOCAL" and (Path(name).name != name or "%" in name or name.upper().startswith("LIST")):
        raise VolumeError(
            f"{path} takes its voxels from {name!r}, which is no single file beside it; convert it to .nii.gz."
        )


def _first_line(error: BaseException) -> ValueError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ValueError(lines[-1] if lines else type(error).__name__)
