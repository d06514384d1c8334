"""Open FreeSurfer's MGH files."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from nibabel.freesurfer.mghformat import MGHHeader
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from app.core.errors import VolumeError
from app.data.formats.contents import READ_ERRORS, FileStamp, damaged, read_content
from app.data.formats.stored_image import StoredImage, new_header

#: Bytes of the header, and most that may follow the voxels: names and a history of commands.
_HEADER: Final = 284
_FOOTER: Final = 2**20
_ERRORS: Final[tuple[type[Exception], ...]] = (*READ_ERRORS, HeaderDataError, KeyError, FloatingPointError)


def open_mgh(path: Path, head: bytes, compressed: bool, stamp: FileStamp) -> StoredImage | None:
    """Open a `.mgh` or `.mgz` file; None where it is none.

    Raises:
        VolumeError: its header is damaged.
    """
    if head[:4] != b"\0\0\0\x01" or len(head) < _HEADER or not path.name.lower().endswith((".mgz", ".mgh", ".mgh.gz")):
        return None
    try:
        stated = MGHHeader(head[:_HEADER], check=False)
        shape = tuple(int(n) for n in stated["dims"])
        shape = shape[:3] if shape[3] <= 1 else shape
        dtype = stated.get_data_dtype()
        # Numbers too large for float32 are no geometry; numpy would only warn.
        with np.errstate(invalid="raise", over="raise"):
            affine = np.asarray(stated.get_affine(), dtype=np.float64)
        header = new_header(shape, dtype.newbyteorder("="), affine)
    except _ERRORS as error:
        raise VolumeError(damaged(path, error)) from None
    needed = _HEADER + int(np.prod([max(n, 0) for n in shape], dtype=np.int64)) * dtype.itemsize

    def read() -> tuple[NDArray[np.float32], str]:
        content, digest = read_content(path, needed + _FOOTER)
        if len(content) < needed:
            raise VolumeError(damaged(path, EOFError()))
        values = np.frombuffer(content, dtype, int(np.prod(shape)), _HEADER)
        return values.reshape(shape, order="F").astype(np.float32), digest

    return StoredImage(path, header, affine, shape, stamp, compressed, read)
