"""Tell images from other files, by name and by their first bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

#: Endings of the images that are read, lower case, longest first. Of a pair it is the header's: one file, not two.
IMAGE_SUFFIXES: Final = (".nii.gz", ".nii", ".mgz", ".mgh", ".nrrd", ".nhdr", ".mha", ".mhd", ".hdr")

#: Endings of images, and of archives with images, that are not read.
FOREIGN_SUFFIXES: Final = (
    ".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip", ".nii.7z", ".img.gz", ".hdr.gz", ".mif.gz", ".mnc.gz", ".brik.gz",
    ".mnc", ".mif", ".brik", ".par", ".rec", ".npy", ".npz", ".h5", ".hdf5", ".gipl", ".gipl.gz", ".fdf", ".vtk",
    ".vti",
    ".nrrd.gz", ".zip", ".7z", ".rar", ".tar", ".tar.gz", ".tgz", ".bz2", ".xz", ".zst", ".dcm", ".ima",
)  # fmt: skip


def foreign_stem(name: str) -> str | None:
    """Return a file's name without the ending of an image that is not read; None where it has none."""
    lower = name.lower()
    suffix = next((s for s in FOREIGN_SUFFIXES if lower.endswith(s)), None)
    return None if suffix is None else name[: -len(suffix)]


def image_stem(name: str) -> str | None:
    """Return a file's name without the ending of an image; None where it has none."""
    lower = name.lower()
    suffix = next((s for s in IMAGE_SUFFIXES if lower.endswith(s)), None)
    return None if suffix is None else name[: -len(suffix)]


def is_dicom(path: Path) -> bool:
    """Tell whether a file holds the DICOM preamble; False where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False
