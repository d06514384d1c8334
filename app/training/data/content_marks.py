"""What a NIfTI file holds, in a few bytes, whether it is compressed or not."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Final

#: Bytes of checksum and length that a gzip file ends with.
GZIP_END: Final = 8
_BLOCK: Final = 1 << 20


def gzip_end(file: Path) -> bytes | None:
    """Return the checksum and length that a compressed file ends with; None of others."""
    if file.suffix != ".gz" or file.stat().st_size < GZIP_END:
        return None
    with file.open("rb") as stream:
        stream.seek(-GZIP_END, os.SEEK_END)
        return stream.read()


def content_mark(file: Path) -> bytes:
    """Return checksum (CRC-32) and length of what a file holds: of copies the same, compressed or not.

    Of a compressed file eight bytes are read, of others all.
    """
    if (end := gzip_end(file)) is not None:
        return end
    checksum = length = 0
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            checksum, length = zlib.crc32(block, checksum), length + len(block)
    return checksum.to_bytes(4, "little") + (length & 0xFFFFFFFF).to_bytes(4, "little")
