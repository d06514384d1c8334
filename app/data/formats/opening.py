"""Open an image by its content, whatever its name: its header now, its voxels when asked."""

from __future__ import annotations

from pathlib import Path

from app.core.errors import VolumeError
from app.data.formats import freesurfer, itk, nifti
from app.data.formats.contents import check_readable, foreign_kind, read_head
from app.data.formats.stored_image import StoredImage


def open_image(path: Path) -> StoredImage:
    """Open an image of any format that is read.

    Raises:
        VolumeError: the file cannot be read, is no image, or its header contradicts its length.
    """
    stamp = check_readable(path)
    head, compressed = read_head(path)
    for opener in (nifti.open_nifti, freesurfer.open_mgh, itk.open_itk):
        if (image := opener(path, head, compressed, stamp)) is not None:
            return image
    raise VolumeError(foreign_kind(path, head))
