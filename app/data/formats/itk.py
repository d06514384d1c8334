"""Open NRRD and MetaImage files, through SimpleITK."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from app.core.errors import VolumeError
from app.core.types import Affine
from app.data.formats.contents import READ_ERRORS, FileStamp, damaged, hash_files
from app.data.formats.stored_image import StoredImage, new_header

_ERRORS: Final[tuple[type[Exception], ...]] = (*READ_ERRORS, RuntimeError, HeaderDataError)
_NRRD: Final = b"NRRD"
_META: Final = re.compile(rb"\s*(ObjectType|NDims|Comment)\s*=", re.IGNORECASE)
#: The file that holds a detached header's voxels, of both formats.
_DETACHED: Final = re.compile(rb"^(?:data ?file:|ElementDataFile\s*=)[ \t]*([^\r\n]+)", re.IGNORECASE | re.MULTILINE)
_SPACE: Final = re.compile(rb"^space: *[a-z]", re.IGNORECASE | re.MULTILINE)
_NRRD_END: Final = re.compile(rb"\n\r?\n")
_META_END: Final = re.compile(rb"ElementDataFile\s*=[^\n]*\n", re.IGNORECASE)
_MOST_HEADER: Final = 2**20
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

    header_text = _header_text(path, head)
    data = _detached_data(path, header_text)
    if head.startswith(_NRRD) and not _SPACE.search(header_text):
        raise VolumeError(f"{path} names no space, so that left and right are unknown; convert it to NIfTI.")
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
            digest = hash_files([path])
        except _ERRORS as error:
            raise VolumeError(damaged(path, _first_line(error))) from None
        return np.ascontiguousarray(values.T, dtype=np.float32), digest

    if data is not None:
        stamp = FileStamp.of(path, data)
    return StoredImage(path, header, affine, shape, stamp, True, read, data=data)


def _header_text(path: Path, head: bytes) -> bytes:
    """Read a header as far as its voxels or its end.

    Raises:
        VolumeError: it is too long to be one.
    """
    end = _NRRD_END if head.startswith(_NRRD) else _META_END
    with path.open("rb") as stream:
        text = stream.read(_MOST_HEADER)
    match = end.search(text)
    if match is None and len(text) == _MOST_HEADER:
        raise VolumeError(f"{path} has a header of more than {_MOST_HEADER // 1024} kB; convert it to .nii.gz.")
    return text if match is None else text[: match.end()]


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


def _detached_data(path: Path, header_text: bytes) -> Path | None:
    """Find the file beside a header that holds its voxels; None where they follow the header.

    Raises:
        VolumeError: they lie elsewhere, or the file is not there.
    """
    for match in _DETACHED.finditer(header_text):
        name = match[1].strip().decode("utf-8", "replace")
        if name.upper() == "LOCAL":
            continue
        if (
            name in {"", ".", ".."}
            or Path(name).name != name
            or not name.isprintable()
            or "%" in name
            or name.upper().startswith("LIST")
        ):
            raise VolumeError(
                f"{path} takes its voxels from {name!r}, which is no single file beside it; convert it to .nii.gz."
            )
        data = path.with_name(name)
        if not data.is_file():
            raise VolumeError(f"{path} is a header alone, and {name} is not beside it; copy both.")
        return data
    return None


def _first_line(error: BaseException) -> ValueError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ValueError(lines[-1] if lines else type(error).__name__)
