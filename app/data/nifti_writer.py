"""Write arrays as NIfTI files with the geometry, header and number type of a reference."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Final

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation

from app.core.atomic_io import save_bytes
from app.core.types import VolumeArray
from app.data.nifti_reader import Grid

#: Characters that a header's `descrip` holds.
DESCRIPTION: Final = 79
#: What an output takes from its reference's header; all else there is the scan's, and perhaps the patient's.
_GEOMETRY: Final = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x",
    "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip
#: Whole numbers up to this are too coarse for an image.
_FEW_LEVELS: Final = 64


def to_image(
    data: VolumeArray, reference: Grid, description: str = "", dtype: np.dtype | None = None
) -> nib.Nifti1Image:
    """Put an L, P, S array into the stored geometry and number type of `reference`.

    Integer types give rounded integers with slope 1 and intercept 0. An 8-bit type too narrow for the values (such
    files rely on a slope) becomes int16. Where rounding would leave fewer than 64 grey levels, as of sequences in other
    units, the type is float32. Values beyond the type saturate (see `scale_to_type`).

    Args:
        data: float32, axes L, P, S, finite, not negative.
        reference: the grid whose affine, qform, sform, codes, zooms, units and type are copied.
        description: names the maker, for the header's 79 characters of `descrip`. The header has nothing else.
        dtype: number type instead of the reference's.

    Raises:
        ValueError: the shapes differ, or a value is negative or not finite.
    """
    if data.shape != reference.lps_shape:
        raise ValueError(f"array of shape {data.shape} does not fit the grid {reference.lps_shape}")
    peak, low = float(data.max()), float(data.min())
    if not math.isfinite(peak) or not math.isfinite(low) or low < 0:
        raise ValueError(f"values from {low} to {peak} are no image intensities")
    stored = apply_orientation(data, reference.from_lps)
    header = _geometry_of(reference)
    dtype = dtype or _output_dtype(reference, peak)
    header.set_data_dtype(dtype)
    header["descrip"] = description.encode("ascii", "replace")[:DESCRIPTION]
    if dtype.kind in "iu":
        # Float32 holds every whole number up to 2 ** 24; only beyond it must a copy be wider.
        wide = stored if peak < 2**24 else stored.astype(np.float64)
        stored = np.clip(np.rint(wide), 0, np.iinfo(dtype).max)
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = image_class(  # type: ignore[no-untyped-call]
        np.ascontiguousarray(stored, dtype=dtype), header.get_best_affine(), header
    )
    image.header.set_slope_inter(1, 0)
    return image


def to_array(image: nib.Nifti1Image, grid: Grid) -> VolumeArray:
    """Return the L, P, S array of an image from `to_image` on `grid`."""
    stored = np.asarray(image.dataobj, dtype=np.float32)
    return np.ascontiguousarray(apply_orientation(stored, grid.to_lps), dtype=np.float32)


def scale_to_type(data: VolumeArray, reference: Grid) -> VolumeArray:
    """Scale an array down where its peak exceeds the stored type; an MRI's unit is arbitrary."""
    peak = float(data.max())
    dtype = _output_dtype(reference, peak)
    if dtype.kind == "f" or peak <= np.iinfo(dtype).max:
        return data
    return data * np.float32(np.iinfo(dtype).max / peak)


def encode_image(image: nib.Nifti1Image) -> bytes:
    """Encode an image as `.nii.gz`; one image always gives the same bytes."""
    # Without time and name inside. Not by isal, five times as fast: its streams of the same bytes may differ.
    return gzip.compress(image.to_bytes(), 1, mtime=0)


def save_image(image: nib.Nifti1Image, path: Path) -> bytes:
    """Encode an image, save it whole, and return the bytes.

    Raises:
        OutputError: as `save_bytes`.
    """
    content = encode_image(image)
    save_bytes(content, path)
    return content


def _geometry_of(reference: Grid) -> nib.Nifti1Header:
    """Make a header that has the geometry of the reference's and nothing else of it."""
    kind = nib.Nifti2Header if isinstance(reference.header, nib.Nifti2Header) else nib.Nifti1Header
    header: nib.Nifti1Header = kind()  # type: ignore[no-untyped-call]
    header.set_data_shape(reference.shape)
    for name in _GEOMETRY:
        header[name] = reference.header[name]
    header["pixdim"][:4] = reference.header["pixdim"][:4]
    return header


def _output_dtype(reference: Grid, peak: float) -> np.dtype:
    stored = reference.header.get_data_dtype()
    if stored.kind in "iu" and peak < _FEW_LEVELS:
        return np.dtype(np.float32)
    if stored.kind == "f":
        return np.dtype(np.float32) if stored.itemsize <= 4 else np.dtype(np.float64)
    # Without the foreign byte order that a file may have.
    stored = stored.newbyteorder("=")
    return np.dtype(np.int16) if stored.itemsize == 1 and np.rint(peak) > np.iinfo(stored).max else stored
