"""What every format gives of a file: its header, and a way to its voxels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from app.core.types import Affine
from app.data.formats.contents import FileStamp

#: Bytes that may follow the last voxel (some writers append).
TRAILING_SLACK: Final = 2**24


@dataclass(frozen=True, eq=False)
class StoredImage:
    """Hold one file's header, and how to decode it.

    Attributes:
        header: a NIfTI header without extensions; a fresh one where the file has another format.
        affine: 4 x 4, stored voxel index to millimetres.
        shape: voxels per axis, as stored; may have more or fewer than three axes.
        stamp: the file's state.
        compressed: whether gzip compressed it.
        read: decodes the voxels as float32 in stored order, and gives the SHA-256 of the file.
        sample: reads a sparse sample of an uncompressed file's stored numbers; None where that is not cheap.
        data: the file beside `path` that holds the voxels; None where one file has all.
        check_length: compares the file's length with what its header says; raises VolumeError.
    """

    path: Path
    header: nib.Nifti1Header
    affine: Affine
    shape: tuple[int, ...]
    stamp: FileStamp
    compressed: bool
    read: Callable[[], tuple[NDArray[np.float32], str]]
    sample: Callable[[], NDArray[np.float32]] | None = None
    check_length: Callable[[], None] | None = None
    data: Path | None = None

    @property
    def parts(self) -> tuple[Path, ...]:
        """List the files of the image, the header's first."""
        return (self.path,) if self.data is None else (self.path, self.data)


def new_header(shape: tuple[int, ...], dtype: np.dtype[Any], affine: Affine) -> nib.Nifti1Header:
    """Make the header that a NIfTI file of such voxels would have.

    Raises:
        ValueError: the axes span no volume; NIfTI cannot hold it.
    """
    edges = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if not np.isfinite(affine).all() or not edges.min() > 0:
        raise ValueError("its axes do not span a volume")
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape)
    header.set_zooms([float(z) for z in edges] + [1.0] * (len(shape) - 3))
    header.set_xyzt_units("mm")
    header.set_sform(affine, 1)
    header.set_qform(affine, 1)
    return header
