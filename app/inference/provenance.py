"""Mark an image with the files that it was made from, so that a later run knows whether they are the same."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

import nibabel as nib

from app.core.constants import MODALITIES, Modality
from app.data.nifti_reader import Grid

#: The header's field for it, 24 characters in both versions of NIfTI; `descrip` is full.
_FIELD: Final = "aux_file"
_MARK: Final = re.compile(r"inputs ([0-9a-f]{16})")


def inputs_digest(sha256s: Mapping[Modality, str]) -> str:
    """Shorten the checksums of a subject's inputs to 16 hexadecimal digits.

    Args:
        sha256s: hex SHA-256 of the file of each sequence that is used.
    """
    text = "".join(f"{m} {sha256s[m]}\n" for m in MODALITIES if m in sha256s)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def mark_inputs(image: nib.Nifti1Image, sha256s: Mapping[Modality, str]) -> None:
    """Write into an image's header what it was made from."""
    image.header[_FIELD] = f"inputs {inputs_digest(sha256s)}".encode()


def inputs_of(grid: Grid) -> str | None:
    """Read the digest that `mark_inputs` wrote; None where the header has none."""
    match = _MARK.fullmatch(bytes(grid.header[_FIELD].item()).decode("ascii", "replace"))
    return None if match is None else match[1]
