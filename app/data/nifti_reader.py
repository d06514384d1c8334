"""Read images without losing a header or trusting an orientation.

Reading has two steps, because `check` needs only the first: `read_grid` looks at the header, `load_volume` decodes the
voxels. `app.data.nifti_writer` writes.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import cast

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from app.core.constants import GRID_TOLERANCE, MAX_EXTENT, MIN_EXTENT, ORIENTATION
from app.core.errors import EmptyVolumeError, VolumeError
from app.core.types import Affine, VolumeArray
from app.data.formats.contents import READ_ERRORS, FileStamp, hash_files
from app.data.formats.opening import open_image
from app.data.formats.stored_image import StoredImage
from app.preprocessing.background import UnclearBackgroundError, clear_background

# nibabel logs what it finds odd in a header, without the file's name; the errors here have it.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)

#: A real scan compresses 5 to 30 times; only a (nearly) constant one goes beyond this.
_SUSPICIOUS_COMPRESSION = 150
#: Share of the voxels with content that may lie below zero (interpolation leaves some); z-scored images have half.
_MOST_NEGATIVE = 0.25
#: Beyond this no intensity is real, and sums of squares leave float32.
_LARGEST = 1e12
#: Headers whose voxels may lie in another file.
_DETACHED_HEADERS = (".hdr", ".nhdr", ".mhd")
#: Angle by which a float32 quaternion near half a turn may be off, in radians.
_QFORM_ROUNDING = 1e-3
#: The volume of a voxel against the product of its edges, below which its axes span none.
_FLAT = 1e-3


@dataclass(frozen=True, eq=False)
class Grid:
    """Describe where the voxels of one file lie.

    Attributes:
        path: the file.
        shape: voxels per axis, as stored.
        affine: 4 x 4, stored voxel index to millimetres.
        header: the file's own header, kept for the output.
        notes: for the user, one sentence each.
        stamp: the file's state when its header was read; None where there is no file.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: Affine
    header: nib.Nifti1Header
    notes: tuple[str, ...] = ()
    stamp: FileStamp | None = None

    @cached_property
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

    def same_as(self, other: Grid, tolerance: float = GRID_TOLERANCE) -> bool:
        """Tell whether both files sample the same points, in whatever axis order.

        Of one qform, which one file's sform repeats more exactly, float32 may turn the volume by up to a thousandth.

        Args:
            tolerance: how far apart a corner of the volume may lie in both, in shortest edges of a voxel.
        """
        if self.lps_shape != other.lps_shape:
            return False
        allowed = tolerance * min(self.spacing)
        if self._has_qform_of(other):
            allowed += _QFORM_ROUNDING * float(np.linalg.norm(np.multiply(self.lps_shape, self.lps_spacing)))
        return self._corner_distance(other) < allowed

    def _has_qform_of(self, other: Grid) -> bool:
        """Tell whether both headers have the same qform, to the rounding of its numbers."""
        one, two = self.header, other.header
        if self.shape != other.shape or not (int(one["qform_code"]) > 0 and int(two["qform_code"]) > 0):
            return False
        fields = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
        rows = [[*(float(h[f]) for f in fields), *map(float, h["pixdim"][:4])] for h in (one, two)]
        return bool(np.allclose(rows[0], rows[1], rtol=1e-5, atol=1e-6))

    def _corner_distance(self, other: Grid) -> float:
        """Measure the largest distance between the same corner of both volumes, in millimetres."""
        ends = [(0, n - 1) for n in self.lps_shape]
        corners = np.array([(*corner, 1) for corner in product(*ends)], dtype=np.float64)
        apart = corners @ (self.lps_affine - other.lps_affine).T
        return float(np.sqrt((apart[:, :3] ** 2).sum(axis=1)).max())

    def difference(self, other: Grid) -> str:
        """Name both grids in words, for a message on their difference."""
        hint = ""
        if self.describe() == other.describe():
            hint = f", corners {self._corner_distance(other):.3g} mm apart"
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
    """Hash the bytes of an image's file, or of header and voxels where they are two; as `Volume.sha256`.

    Raises:
        VolumeError: it cannot be read.
    """
    detached = path.name.lower().endswith(_DETACHED_HEADERS)
    return hash_files(open_image(path).parts if detached else [path])


def read_grid(path: Path, least_extent: int = MIN_EXTENT) -> Grid:
    """Read and check the header of an image, without its voxels.

    Args:
        least_extent: fewest voxels that an axis may have.

    Raises:
        VolumeError: the file cannot be read, is no image, is not one 3D volume, or has an axis outside `least_extent`
            to `MAX_EXTENT`.
    """
    return _grid_of(open_image(path), least_extent)


def load_volume(
    path: Path, *, strict: bool = False, scanned: Grid | None = None, least_extent: int = MIN_EXTENT
) -> Volume:
    """Read a file as float32 in L, P, S, with its scaling applied.

    NaN, infinities and negatives become 0 and are noted.

    Args:
        strict: for scoring rather than use: values that are not finite are an error, and a constant volume is taken as
            it is.
        scanned: the file's grid as it was found; the file must not have changed since.
        least_extent: fewest voxels that an axis may have.

    Raises:
        EmptyVolumeError: every voxel is the same or none is finite (not when `strict`).
        VolumeError: as `read_grid`, or the voxels cannot be decoded, or the file has changed.
    """
    image = open_image(path)
    grid = _grid_of(image, least_extent)
    try:
        # Damaged or extreme files may overflow float32; the infinities are counted below.
        with np.errstate(over="ignore", invalid="ignore"):
            stored, digest = image.read()
    except MemoryError:
        raise VolumeError(f"{path} does not fit into memory ({grid.describe()}); free memory or resample it.") from None
    if image.data is not None:
        digest = hash_files(image.parts)
    _check_unchanged(image, grid, scanned)
    data = np.ascontiguousarray(apply_orientation(stored.reshape(grid.shape), grid.to_lps), dtype=np.float32)
    if not data.flags.writeable:
        data = data.copy()
    if strict:
        if not np.isfinite(data).all():
            raise VolumeError(f"{path} holds NaN or infinite voxels and cannot be scored; make it again.")
        return Volume(data=np.maximum(data, 0), grid=grid, notes=grid.notes, sha256=digest)
    # An integer is never infinite by itself.
    notes = [*grid.notes, *_clean_in_place(data, path, overflowed=grid.header.get_data_dtype().kind in "iu")]
    return Volume(data=data, grid=grid, notes=tuple(notes), sha256=digest)


def _check_unchanged(image: StoredImage, grid: Grid, scanned: Grid | None) -> None:
    """Refuse a file that is no longer what its header was, or was when it was found."""
    try:
        same = FileStamp.of(*image.parts).is_state_of(image.stamp)
    except OSError:
        same = False
    if scanned is not None and scanned.stamp is not None:
        same &= scanned.stamp.is_state_of(image.stamp) and scanned.shape == grid.shape
        same &= bool(np.array_equal(scanned.affine, grid.affine))
    if not same:
        raise VolumeError(f"{image.path} was changed while it was read; run again when nobody writes it.")


def find_emptiness(grid: Grid) -> str | None:
    """Say why the file of `grid` has no content; None if it has some.

    Compressed files are decoded only when they are too small to hold a scan. Uncompressed ones are decoded only when a
    sparse sample of their voxels is constant. `load_volume` finds the rare rest.
    """
    raw_bytes = math.prod(grid.shape) * grid.header.get_data_dtype().itemsize
    if grid.stamp is not None and grid.stamp.size < raw_bytes <= grid.stamp.size * _SUSPICIOUS_COMPRESSION:
        # Shorter than its voxels, so compressed: not worth another look over a network.
        return None
    image = open_image(grid.path)
    if image.sample is None:
        suspicious = image.stamp.size * _SUSPICIOUS_COMPRESSION < raw_bytes
    else:
        suspicious = _is_constant(image)
    if suspicious:
        try:
            load_volume(grid.path)
        except EmptyVolumeError as error:
            return str(error)
        except VolumeError:
            return None
    return None


def _is_constant(image: StoredImage) -> bool:
    """Tell whether a sparse sample of the voxels has one value at most."""
    assert image.sample is not None
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            sample = image.sample()
    except READ_ERRORS:
        return True
    finite = sample[np.isfinite(sample)]
    return finite.size == 0 or bool(finite.min() == finite.max())


def _grid_of(image: StoredImage, least_extent: int = MIN_EXTENT) -> Grid:
    path, header, shape = image.path, image.header, image.shape
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    text = "x".join(map(str, shape))
    if len(shape) > 3:
        raise VolumeError(f"{path} holds {math.prod(shape[3:])} volumes ({text}); give one 3D volume per file.")
    if len(shape) < 3:
        raise VolumeError(f"{path} is not a volume ({text or 'no'} voxels); give one 3D volume per file.")
    if not all(least_extent <= n <= MAX_EXTENT for n in shape):
        raise VolumeError(
            f"{path} has {text} voxels, but each axis must have {least_extent} to {MAX_EXTENT}; "
            "resample it to about 1 mm in every direction."
        )
    if header.get_data_dtype().kind not in "iuf":
        raise VolumeError(
            f"{path} has voxels that are no plain numbers (colour, say); export it with one number per voxel."
        )
    _check_affine(path, image.affine)
    if image.check_length is not None:
        image.check_length()
    own = header.copy()
    own.set_data_shape(shape)
    x, y, z = shape
    notes = []
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        notes.append(f"{path} has neither sform nor qform: its axes are taken as right to left, back to front, up.")
    return Grid(path, (x, y, z), image.affine, own, tuple(notes), image.stamp)


def _check_affine(path: Path, affine: Affine) -> None:
    if not np.isfinite(affine).all():
        raise VolumeError(f"{path} has an affine that maps voxels to no place; repair its sform or qform.")
    edges = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    if edges.min() < 1e-6 or abs(np.linalg.det(affine[:3, :3] / edges)) < _FLAT:
        raise VolumeError(f"{path} has an affine whose axes do not span a volume; repair its sform or qform.")


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
    notes += _clear_background_in_place(data, path)
    return notes + clear_negatives_in_place(data, str(path))


def clear_negatives_in_place(data: VolumeArray, place: str) -> list[str]:
    """Set the few negative voxels of a scan to 0, and say how many.

    Args:
        place: what was read, for messages.

    Raises:
        VolumeError: there are many: what was scored or shifted is no scan.
    """
    if not float(data.min()) < 0:
        return []
    negative = int(np.count_nonzero(data < 0))
    if negative > _MOST_NEGATIVE * np.count_nonzero(data):
        raise VolumeError(
            f"{place} has {negative} negative voxels: it was z-scored or shifted; give the original intensities, "
            "with background 0."
        )
    np.maximum(data, 0, out=data)
    return [f"{place}: {negative} negative voxels were set to 0."]


def _clear_background_in_place(data: VolumeArray, path: Path) -> list[str]:
    try:
        cleared, what = clear_background(data)
    except UnclearBackgroundError as error:
        raise VolumeError(f"{path} {error}") from None
    if what is None:
        return []
    if not (cleared > 0).any():
        raise EmptyVolumeError(f"{path} has no voxel above its background; its sequence counts as missing.")
    data[...] = cleared
    return [f"{path}: {what}."]
