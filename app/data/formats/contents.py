"""Read files as bytes: their first ones, all of them, and what they are by them."""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from isal import igzip
from isal.igzip_lib import IsalError

from app.core.errors import VolumeError

#: Errors of the decompressors and the system for a damaged file. isal's stubs call its error an instance.
READ_ERRORS: Final[tuple[type[Exception], ...]] = (EOFError, OSError, ValueError, OverflowError, zlib.error, IsalError)  # type: ignore[assignment]
GZIP: Final = b"\x1f\x8b"
#: Bytes that tell what a file is, from its beginning or (of the last two) a later place.
_HEAD: Final = 1024
_SIGNATURES: Final = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the image itself", "fetch it (git lfs pull)"),
    (0, b"/annex/objects/", "a git-annex pointer, not the image itself", "fetch it (datalad get, git annex get)"),
    (0, b"../.git/annex/", "a git-annex pointer, not the image itself", "fetch it (datalad get, git annex get)"),
    (0, b"PK\x03\x04", "a zip archive", "unpack it"),
    (0, b"PK\x05\x06", "an empty zip archive", "copy it again"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (0, b"Rar!", "a RAR archive", "unpack it"),
    (0, b"BZh", "compressed by bzip2", "write it as .nii.gz"),
    (0, b"\xfd7zXZ", "compressed by xz", "write it as .nii.gz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd", "write it as .nii.gz"),
    (0, b"\x89HDF", "an HDF5 file (MINC 2, say)", "convert it to .nii.gz"),
    (0, b"CDF\x01", "a MINC or NetCDF file", "convert it to .nii.gz"),
    (0, b"CDF\x02", "a MINC or NetCDF file", "convert it to .nii.gz"),
    (0, b"MATLAB ", "a MATLAB file", "convert it to .nii.gz"),
    (0, b"\x93NUMPY", "a NumPy array", "write it as .nii.gz with its affine"),
    (0, b"mrtrix image", "an MRtrix image", "convert it to .nii.gz (mrconvert)"),
    (0, b"SIMPLE  =", "a FITS file", "convert it to .nii.gz"),
    (0, b"%PDF", "a PDF", "give the image"),
    (0, b"\x89PNG", "a picture (PNG)", "give the volume as .nii.gz"),
    (0, b"\xff\xd8\xff", "a picture (JPEG)", "give the volume as .nii.gz"),
    (0, b"GIF8", "a picture (GIF)", "give the volume as .nii.gz"),
    (0, b"II*\x00", "a picture (TIFF)", "give the volume as .nii.gz"),
    (0, b"MM\x00*", "a picture (TIFF)", "give the volume as .nii.gz"),
    (128, b"DICM", "a DICOM file", "convert its series to NIfTI (dcm2niix)"),
    (257, b"ustar", "a tar archive", "unpack it"),
)


@dataclass(frozen=True)
class FileStamp:
    """Tell one state of a file from another.

    Attributes:
        size: its bytes.
        changed: when its content changed last, in nanoseconds.
        number: on its disk.
        touched: when anything of it changed last, its name or mode too, in nanoseconds.

    Of an image in several files each is the sum of theirs.
    """

    size: int
    changed: int
    number: int
    touched: int

    @classmethod
    def of(cls, *parts: Path) -> FileStamp:
        """Take the stamp of an image that is there."""
        states = [part.stat() for part in parts]
        return cls(
            sum(s.st_size for s in states),
            sum(s.st_mtime_ns for s in states),
            sum(s.st_ino for s in states),
            sum(s.st_ctime_ns for s in states),
        )

    def is_state_of(self, other: FileStamp) -> bool:
        """Tell whether both may be stamps of one state.

        Some network disks number a file anew each time, and a backup touches files: only both together mean another.
        """
        same_file = self.number == other.number or self.touched == other.touched
        return self.size == other.size and self.changed == other.changed and same_file


def check_readable(path: Path) -> FileStamp:
    """Check that a path is a file with content that this user may read.

    Raises:
        VolumeError: it is not.
    """
    if path.is_symlink() and not path.exists():
        annex = "/annex/objects/" in str(path.readlink())
        advice = "fetch it (datalad get, git annex get)" if annex else "restore the file that it points to"
        raise VolumeError(f"{path} is a broken link; {advice}.")
    if not path.is_file():
        raise VolumeError(f"{path} is not a file; give an image, such as a .nii.gz file.")
    try:
        stamp = FileStamp.of(path)
        if stamp.size == 0:
            raise VolumeError(f"{path} is empty (0 bytes); copy it again.")
        with path.open("rb") as stream:
            stream.read(1)
    except PermissionError:
        raise VolumeError(f"{path} may not be read by this user; give it read permission.") from None
    except OSError as error:
        raise VolumeError(f"{path} cannot be read ({error.strerror or error}); copy it again.") from None
    return stamp


def read_head(path: Path) -> tuple[bytes, bool]:
    """Read a file's first bytes, decompressed where gzip compressed them.

    Returns:
        At most a thousand bytes, and whether they were compressed.

    Raises:
        VolumeError: the compressed stream is damaged.
    """
    with path.open("rb") as stream:
        head = stream.read(_HEAD)
    if not head.startswith(GZIP):
        return head, False
    try:
        with igzip.open(path) as stream:
            return stream.read(_HEAD), True
    except READ_ERRORS as error:
        raise VolumeError(damaged(path, error)) from None


def read_content(path: Path, limit: int) -> tuple[bytes, str]:
    """Read a whole file, decompressed where gzip compressed it, and hash it.

    Reading to the end makes gzip compare its checksum.

    Args:
        limit: most bytes that it may have, decompressed.

    Returns:
        The content, and the hexadecimal SHA-256 of the file as it lies on disk.

    Raises:
        VolumeError: it is damaged, or longer than the limit.
    """
    try:
        # Gzip makes nothing longer by more than a little, whatever follows its end.
        if path.stat().st_size > 2 * limit:
            raise VolumeError(f"{path} is damaged: it is longer than its header says; copy or export it again.")
        raw = path.read_bytes()
        digest = hashlib.sha256(raw).hexdigest()
        if not raw.startswith(GZIP):
            if len(raw) > limit:
                raise VolumeError(f"{path} is damaged: it is longer than its header says; copy or export it again.")
            return raw, digest
        with igzip.open(io.BytesIO(raw)) as stream:
            content = stream.read(limit + 1)
    except READ_ERRORS as error:
        raise VolumeError(damaged(path, error)) from None
    if len(content) > limit:
        raise VolumeError(f"{path} is damaged: it holds more data than its header says; copy or export it again.")
    return content, digest


def hash_files(parts: Sequence[Path]) -> str:
    """Hash the bytes of an image's files, one after the other; hex SHA-256.

    Raises:
        VolumeError: one cannot be read.
    """
    digest = hashlib.sha256()
    for part in parts:
        try:
            with part.open("rb") as stream:
                while block := stream.read(2**20):
                    digest.update(block)
        except OSError as error:
            raise VolumeError(f"{part} cannot be read ({error.strerror}); give it read permission.") from None
    return digest.hexdigest()


def foreign_kind(path: Path, head: bytes) -> str:
    """Say what a file is that is none of the images that are read, and what to do about it.

    Args:
        head: as `read_head` gives it.
    """
    for place, signature, what, advice in _SIGNATURES:
        if head[place:].startswith(signature):
            return f"{path} is {what}; {advice}."
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:64].lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<!--")):
        return f"{path} is a web page or XML, not an image; download it again (perhaps the login had ended)."
    if not head.strip(b"\0"):
        return f"{path} holds zeros where its header should be; copy or export it again."
    if _is_text(head):
        return f"{path} is text, not an image; copy or export it again."
    return f"{path} cannot be read as NIfTI (its beginning is that of no known image); copy or export it again."


def damaged(path: Path, error: BaseException) -> str:
    """Say that a file cannot be decoded."""
    if isinstance(error, EOFError):
        return f"{path} is truncated: it ends before its last voxel; copy or export it again."
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{path} cannot be read as NIfTI ({reason.rstrip('.')[:120]}); copy or export it again."


def _is_text(head: bytes) -> bool:
    return all(byte >= 32 or byte in b"\t\n\r\f" for byte in head[:512])
