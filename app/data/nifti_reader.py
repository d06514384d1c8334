"""Read NIfTI files without losing a header or trusting an orientation.

Reading has two steps, because `check` needs only the first: `read_grid` looks at the header, `load_volume` decodes the
voxels. `app.data.nifti_writer` writes.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from isal import igzip
from isal.igzip_lib import IsalError
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from app.core.constants import AFFINE_TOLERANCE, MAX_EXTENT, MIN_EXTENT, ORIENTATION
from app.core.errors import EmptyVolumeError, VolumeError
from app.core.types import Affine, VolumeArray

# nibabel logs what it finds odd in a header, without the file's name; the errors here have it.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)

#: Deflate cannot compress further than this.
_DEFLATE_LIMIT = 1032
#: A real scan compresses 5 to 30 times; only a (nearly) constant one goes beyond this.
_SUSPICIOUS_COMPRESSION = 150
#: Share of the voxels with content that may lie below zero (interpolation leaves some); z-scored images have half.
_MOST_NEGATIVE = 0.25
#: Beyond this no intensity is real, and sums of squares leave float32.
_LARGEST = 1e12
#: Bytes that may follow the last voxel (some writers append).
_TRAILING_SLACK = 2**24
#: Errors of nibabel, zlib and the system for a damaged or foreign file.
# isal's stubs call its error an instance.
_READ_ERRORS: tuple[type[Exception], ...] = (  # type: ignore[assignment]
    ImageFileError, HeaderDataError, EOFError, OSError, ValueError, OverflowError, zlib.error, IsalError,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Grid:
    """Describe where the voxels of one file lie.

    Attributes:
        path: the file.
        shape: voxels per axis, as stored.
        affine: 4 x 4, stored voxel index to millimetres.
        header: the file's own header, kept for the output.
        notes: for the user, one sentence each.
        fractions: whether a slope or intercept makes fractions of stored integers.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: Affine
    header: nib.Nifti1Header
    notes: tuple[str, ...] = ()
    fractions: bool = False

    @property
    def to_lps(self) -> NDArray[np.float64]:
        """Return nibabel's orientation (3 x 2) from the stored axes to L, P, S."""
        transform = ornt_transform(io_orientation(self.affine), axcodes2ornt(ORIENTATION))
        return cast("NDArray[np.float64]", transform)

    @property
    def from_lps(self) -> NDArray[np.float64]:
        """Return the inverse of `to_lps`."""
        transform = ornt_transform(axcodes2ornt(ORIENTATION), io_orientation(self.affine))
        return cast("NDArray[np.float64]", transform)

    @property
    def lps_shape(self) -> tuple[int, ...]:
        """Count voxels per axis after `to_lps`."""
        shape = [0, 0, 0]
        for stored_axis, (axis, _) in enumerate(self.to_lps):
            shape[int(axis)] = self.shape[stored_axis]
        return tuple(shape)

    @property
    def lps_affine(self) -> Affine:
        """Return the 4 x 4 map from an L, P, S index to millimetres."""
        return np.asarray(self.affine @ inv_ornt_aff(self.to_lps, self.shape), dtype=np.float64)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Return voxel edge lengths of the stored axes in millimetres."""
        x, y, z = np.sqrt((self.affine[:3, :3] ** 2).sum(axis=0))
        return float(x), float(y), float(z)

    @property
    def lps_spacing(self) -> tuple[float, float, float]:
        """Return voxel edge lengths of the L, P, S array in millimetres."""
        left, posterior, superior = np.sqrt((self.lps_affine[:3, :3] ** 2).sum(axis=0))
        return float(left), float(posterior), float(superior)

    def same_as(self, other: Grid, tolerance: float = AFFINE_TOLERANCE) -> bool:
        """Tell whether both files sample the same points, in whatever axis order."""
        return self.lps_shape == other.lps_shape and np.allclose(
            self.lps_affine, other.lps_affine, rtol=0.0, atol=tolerance
        )

    def difference(self, other: Grid) -> str:
        """Name both grids in words, for a message on their difference."""
        hint = ""
        if self.describe() == other.describe():
            hint = f", affines {abs(self.lps_affine - other.lps_affine).max():.3g} mm apart"
        return f"{self.path.name} is {self.describe()}, {other.path.name} {other.describe()}{hint}"

    def describe(self) -> str:
        """Name shape and spacing in words, such as `240x240x155 at 1x1x1 mm`."""
        return f"{'x'.join(map(str, self.shape))} at {'x'.join(f'{s:.3g}' for s in self.spacing)} mm"


@dataclass(frozen=True, eq=False)
class Volume:
    """Hold one sequence of one subject.

    Attributes:
        data: float32, axes L, P, S; finite and not negative.
        grid: where the stored voxels lie.
        notes: repairs made on reading, one sentence each.
        sha256: hex SHA-256 of the file's bytes that were decoded.
    """

    data: VolumeArray
    grid: Grid
    notes: tuple[str, ...] = field(default=())
    sha256: str = ""


def file_sha256(path: Path) -> str:
    """Hash the bytes of an image's file; hex SHA-256, as `Volume.sha256`.

    Raises:
        VolumeError: it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise VolumeError(f"{path} cannot be read ({error.strerror}); give it read permission.") from None


def read_grid(path: Path) -> Grid:
    """Read and check the header of a NIfTI file, without its voxels.

    Raises:
        VolumeError: the file cannot be read, is no NIfTI, is not one 3D volume, or has an axis
            outside `MIN_EXTENT` to `MAX_EXTENT`.
    """
    image = _open(path)
    return _grid_of(path, image)


def load_volume(path: Path, *, strict: bool = False) -> Volume:
    """Read a file as float32 in L, P, S, with its scaling applied.

    NaN, infinities and negatives become 0 and are noted.

    Args:
        strict: for scoring rather than use: values that are not finite are an error, and a constant volume is taken as
            it is.

    Raises:
        EmptyVolumeError: every voxel is the same or none is finite (not when `strict`).
        VolumeError: as `read_grid`, or the voxels cannot be decoded.
    """
    image = _open(path)
    grid = _grid_of(path, image)
    try:
        # Damaged or extreme files may overflow float32; the infinities are counted below.
        with np.errstate(over="ignore", invalid="ignore"):
            decoded = _decompressed(path, image)
            stored = np.asarray(decoded.get_fdata(dtype=np.float32, caching="unchanged"))
    except MemoryError:
        raise VolumeError(f"{path} does not fit into memory ({grid.describe()}); free memory or resample it.") from None
    except _READ_ERRORS as error:
        raise VolumeError(_damaged(path, error)) from None
    data = np.ascontiguousarray(apply_orientation(stored.reshape(grid.shape), grid.to_lps), dtype=np.float32)
    if not data.flags.writeable:
        data = data.copy()
    if strict:
        if not np.isfinite(data).all():
            raise VolumeError(f"{path} holds NaN or infinite voxels and cannot be scored; make it again.")
        return Volume(data=np.maximum(data, 0), grid=grid, notes=grid.notes, sha256=file_sha256(path))
    # An integer is never infinite by itself.
    notes = [*grid.notes, *_clean_in_place(data, path, overflowed=grid.header.get_data_dtype().kind in "iu")]
    return Volume(data=data, grid=grid, notes=tuple(notes), sha256=file_sha256(path))


def find_emptiness(grid: Grid) -> str | None:
    """Say why the file of `grid` has no content; None if it has some.

    Compressed files are decoded only when they are too small to hold a scan. Uncompressed ones are decoded only when a
    sparse sample of their voxels is constant. `load_volume` finds the rare rest.
    """
    image = _open(grid.path)
    raw_bytes = math.prod(grid.shape) * image.header.get_data_dtype().itemsize
    if grid.path.name.lower().endswith(".gz"):
        suspicious = grid.path.stat().st_size * _SUSPICIOUS_COMPRESSION < raw_bytes
    else:
        sample = np.asarray(image.dataobj[tuple(slice(n // 32, None, max(1, n // 16)) for n in grid.shape)])
        finite = sample[np.isfinite(sample)]
        suspicious = finite.size == 0 or finite.min() == finite.max()
    if suspicious:
        try:
            load_volume(grid.path)
        except EmptyVolumeError as error:
            return str(error)
        except VolumeError:
            return None
    return None


def _open(path: Path) -> nib.Nifti1Image:
    if path.is_symlink() and not path.exists():
        raise VolumeError(f"{path} is a broken link; restore the file that it points to.")
    if not path.is_file():
        raise VolumeError(f"{path} is not a file; give a .nii or .nii.gz file.")
    try:
        size = path.stat().st_size
        if size == 0:
            raise VolumeError(f"{path} is empty (0 bytes); copy it again.")
        with path.open("rb") as stream:
            magic = stream.read(2)
        if path.name.lower().endswith(".gz") and magic != b"\x1f\x8b":
            raise VolumeError(f"{path} is not gzip-compressed although its name ends in .gz; write it as NIfTI again.")
        image = nib.load(path)
    except PermissionError:
        raise VolumeError(f"{path} may not be read by this user; give it read permission.") from None
    except _READ_ERRORS as error:
        raise VolumeError(_damaged(path, error)) from None
    if not isinstance(image, nib.Nifti1Image):
        raise VolumeError(f"{path} is {type(image).__name__}, not NIfTI; convert it to .nii.gz.")
    return image


def _decompressed(path: Path, image: nib.Nifti1Image) -> nib.Nifti1Image:
    """Decompress a compressed image into memory; return others as they are.

    Reading to the end makes gzip compare its checksum. Nibabel alone would stop at the last voxel and take a stream
    with a flipped bit for an image.
    """
    if not path.name.lower().endswith(".gz"):
        return image
    limit = _bytes_needed(image) + _TRAILING_SLACK
    with igzip.open(path) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise VolumeError(f"{path} is damaged: it holds more data than its header says; copy or export it again.")
    return type(image).from_bytes(content)


def _bytes_needed(image: nib.Nifti1Image) -> int:
    header = image.header
    return math.prod(image.shape) * int(header.get_data_dtype().itemsize) + int(header["vox_offset"])


def _damaged(path: Path, error: BaseException) -> str:
    if isinstance(error, EOFError):
        return f"{path} is truncated: it ends before its last voxel; copy or export it again."
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{path} cannot be read as NIfTI ({reason.rstrip('.')[:120]}); copy or export it again."


def _grid_of(path: Path, image: nib.Nifti1Image) -> Grid:
    header = image.header
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    text = "x".join(map(str, shape))
    if len(shape) > 3:
        raise VolumeError(f"{path} holds {math.prod(shape[3:])} volumes ({text}); give one 3D volume per file.")
    if len(shape) < 3:
        raise VolumeError(f"{path} is not a volume ({text or 'no'} voxels); give one 3D volume per file.")
    if not all(MIN_EXTENT <= n <= MAX_EXTENT for n in shape):
        raise VolumeError(
            f"{path} has {text} voxels, but each axis must have {MIN_EXTENT} to {MAX_EXTENT}; "
            "resample it to about 1 mm in every direction."
        )
    if header.get_data_dtype().kind not in "iuf":
        raise VolumeError(
            f"{path} has voxels that are no plain numbers (colour, say); export it with one number per voxel."
        )
    affine = np.asarray(image.affine, dtype=np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise VolumeError(f"{path} has an affine that maps voxels to no place; repair its sform or qform.")
    _check_file_size(path, image)
    own = header.copy()
    own.set_data_shape(shape)
    x, y, z = shape
    notes = []
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        notes.append(f"{path} has neither sform nor qform: its axes are taken as right to left, back to front, up.")
    scaling = [float(getattr(image.dataobj, name, default)) for name, default in (("slope", 1), ("inter", 0))]
    fractions = own.get_data_dtype().kind in "iu" and not all(s.is_integer() for s in scaling)
    return Grid(path=path, shape=(x, y, z), affine=affine, header=own, notes=tuple(notes), fractions=fractions)


def _check_file_size(path: Path, image: nib.Nifti1Image) -> None:
    # The header says how many bytes must follow; both kinds of file tell their length without being decoded.
    needed = _bytes_needed(image)
    with path.open("rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
        length = stream.seek(0, os.SEEK_END)
        if compressed:
            stream.seek(-4, os.SEEK_END)
            # A gzip file ends with the length of its (last) member before compression. In a truncated file
            # these bytes are any bytes of the stream, and nearly always say far more than the header does.
            stated = int.from_bytes(stream.read(4), "little")
            if stated > needed + _TRAILING_SLACK or length * _DEFLATE_LIMIT < needed:
                raise VolumeError(f"{path} is truncated or damaged: its end does not fit its header; copy it again.")
        elif length < needed:
            raise VolumeError(f"{path} is truncated: it has {length} bytes of {needed}; copy or export it again.")


def _clean_in_place(data: VolumeArray, path: Path, overflowed: bool) -> list[str]:
    notes = []
    finite = np.isfinite(data)
    bad = data.size - int(np.count_nonzero(finite))
    if bad and overflowed:
        raise VolumeError(f"{path} has a slope that takes its values beyond float32; export it again.")
    if bad == data.size:
        raise EmptyVolumeError(f"{path} has no finite voxel; its sequence counts as missing.")
    if bad:
        data[~finite] = 0
        notes.append(f"{path}: {bad} voxels that were NaN or infinite were set to 0.")
    low, high = float(data.min()), float(data.max())
    if max(high, -low) > _LARGEST:
        raise VolumeError(f"{path} has values up to {max(high, -low):.3g}, which no scanner gives; export it again.")
    if low == high == 0 and bad:
        raise EmptyVolumeError(f"{path} has only zeros and values that are not finite; its sequence counts as missing.")
    if low == high:
        raise EmptyVolumeError(f"{path} has the same value ({low:g}) everywhere; its sequence counts as missing.")
    if low < 0:
        negative = int(np.count_nonzero(data < 0))
        if negative > _MOST_NEGATIVE * np.count_nonzero(data):
            raise VolumeError(
                f"{path} has {negative} negative voxels: it was z-scored or shifted; give the original intensities, "
                "with background 0."
            )
        np.maximum(data, 0, out=data)
        notes.append(f"{path}: {negative} negative voxels were set to 0.")
    return notes
