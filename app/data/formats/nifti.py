"""Open NIfTI files, single or in pairs.

Header extensions are skipped by their length and never parsed: they are other tools'.
"""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from app.core.errors import VolumeError
from app.data.formats.contents import READ_ERRORS, FileStamp, damaged, read_content
from app.data.formats.stored_image import TRAILING_SLACK, StoredImage

#: Bytes of header extensions that are skipped; more are refused.
MOST_EXTENSION: Final = 2**28
#: Deflate cannot compress further than this.
_DEFLATE_LIMIT: Final = 1032
_HEADER_ERRORS: Final[tuple[type[Exception], ...]] = (*READ_ERRORS, ImageFileError, HeaderDataError, struct.error)


def _nifti_class(head: bytes) -> type[nib.Nifti1Header] | None:
    if len(head) >= 348 and head[344:348] in {b"n+1\0", b"ni1\0"} and b"\x5c\x01" in {head[0:2], head[2:4][::-1]}:
        return nib.Nifti1Header
    if len(head) >= 540 and head[4:8] in {b"n+2\0", b"ni2\0"}:
        return nib.Nifti2Header
    return None


def _is_analyze(head: bytes) -> bool:
    return len(head) >= 348 and head[:4] in {b"\x5c\x01\0\0", b"\0\0\x01\x5c"}


def open_nifti(path: Path, head: bytes, compressed: bool, stamp: FileStamp) -> StoredImage | None:
    """Open a NIfTI-1 or NIfTI-2 file, or the header of a pair; None where it is neither.

    Raises:
        VolumeError: its header is damaged, or it is ANALYZE 7.5, whose left and right are unknown.
    """
    kind = _nifti_class(head)
    if kind is None:
        if _is_analyze(head):
            raise VolumeError(f"{path} is ANALYZE 7.5, which does not say left from right; convert it to NIfTI.")
        return None
    size = 540 if kind is nib.Nifti2Header else 348
    try:
        header = kind(head[:size], check=True)
        shape = _stated_shape(header)
        dtype = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except _HEADER_ERRORS as error:
        raise VolumeError(damaged(path, error)) from None
    is_pair = head[4:8] == b"ni2\0" if size == 540 else head[344:348] == b"ni1\0"
    data = _partner(path) if is_pair else path
    offset = _data_offset(path, header, 0 if is_pair else size + 4)
    needed = offset + math.prod(max(n, 0) for n in shape) * dtype.itemsize

    def read() -> tuple[NDArray[np.float32], str]:
        content, digest = read_content(data, needed + TRAILING_SLACK)
        if len(content) < needed:
            raise VolumeError(damaged(data, EOFError()))
        proxy = ArrayProxy(io.BytesIO(content), (shape, dtype, offset, slope, intercept), mmap=False)
        return np.asarray(proxy, dtype=np.float32), digest

    def sample() -> NDArray[np.float32]:
        return _sample(data, shape, dtype, offset)

    compressed = compressed if data == path else _is_compressed(data)

    def check_length() -> None:
        _check_length(data, needed, compressed)

    beside = None if data == path else data
    stamp = stamp if beside is None else FileStamp.of(path, beside)
    return StoredImage(
        path, header, affine, shape, stamp, compressed, read, None if compressed else sample, check_length, beside
    )


def _sample(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> NDArray[np.float32]:
    """Read some voxels of some planes of a volume; mapped memory would end the process if the file became shorter."""
    columns, rows, planes = (range(n // 32, n, max(1, n // 16)) for n in shape[:3])
    length = shape[0] * shape[1] * dtype.itemsize
    kept = []
    with path.open("rb") as stream:
        for plane in planes:
            stream.seek(offset + plane * length)
            voxels = np.frombuffer(stream.read(length), dtype).reshape(shape[:2], order="F")
            kept.append(voxels[columns.start :: columns.step, rows.start :: rows.step].astype(np.float32))
    return np.stack(kept)


def _stated_shape(header: nib.Nifti1Header) -> tuple[int, ...]:
    count = int(header["dim"][0])
    if not 1 <= count <= 7:
        raise HeaderDataError(f"its header states {count} axes")
    return tuple(int(n) for n in header["dim"][1 : 1 + count])


def _data_offset(path: Path, header: nib.Nifti1Header, least: int) -> int:
    stated = float(header["vox_offset"])
    if stated == 0:
        # Some writers leave it out.
        return least
    if not math.isfinite(stated) or stated < least or not stated.is_integer():
        raise VolumeError(
            f"{path} is damaged: its header says that its voxels begin at byte {stated:g}; copy it again."
        )
    if stated > least + MOST_EXTENSION:
        raise VolumeError(
            f"{path} has {stated - least:.3g} bytes between header and voxels, more than {MOST_EXTENSION // 2**20} MB; "
            "write it again without header extensions."
        )
    return int(stated)


def _partner(path: Path) -> Path:
    """Find the data file of a pair.

    Raises:
        VolumeError: there is none.
    """
    for suffix in (".img", ".IMG", ".img.gz"):
        data = path.with_suffix(suffix)
        if data.is_file():
            return data
    raise VolumeError(
        f"{path} is the header of a pair, and {path.with_suffix('.img').name} is not beside it; copy both."
    )


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _check_length(path: Path, needed: int, compressed: bool) -> None:
    """Compare a file's length with what its header says: both kinds of file tell it without being decoded."""
    length = path.stat().st_size
    if not compressed:
        if length < needed:
            missing = f"it has {length} bytes of {needed} and ends before its last voxel"
            raise VolumeError(f"{path} is truncated: {missing}; copy or export it again.")
        return
    with path.open("rb") as stream:
        stream.seek(max(length - 4, 0))
        # A gzip file ends with the length of its (last) member before compression. In a truncated file these bytes are
        # any bytes of the stream, and nearly always say far more than the header does.
        stated = int.from_bytes(stream.read(4), "little")
    if stated > needed + TRAILING_SLACK or length * _DEFLATE_LIMIT < needed:
        raise VolumeError(f"{path} is truncated or damaged: its end does not fit its header; copy it again.")
