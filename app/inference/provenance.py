"""Mark an image with what a later run asks of it: the files that it was made from, and what was expected of it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final

import nibabel as nib

from app.core.constants import MODALITIES, Modality
from app.data.nifti_reader import Grid
from app.preprocessing.expected_quality import Expectation

#: The header's field for it, 24 characters in both versions of NIfTI; `descrip` is full.
_FIELD: Final = "aux_file"
#: Name of the data, 16 characters in both versions of NIfTI.
_EXPECTED_FIELD: Final = "intent_name"
_EXPECTED: Final = re.compile(r"expected (-?\d\.\d{3})")
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


def mark_expectation(image: nib.Nifti1Image, expectation: Expectation | None) -> None:
    """Write into an image's header which SSIM is expected of it; nothing where nobody knows."""
    known = None if expectation is None else expectation.ssim
    image.header[_EXPECTED_FIELD] = b"" if known is None else f"expected {known.value:.3f}".encode()


def expected_of(grid: Grid) -> float | None:
    """Read the SSIM that `mark_expectation` wrote; None where the header has none."""
    match = _EXPECTED.fullmatch(bytes(grid.header[_EXPECTED_FIELD].item()).decode("ascii", "replace"))
    return None if match is None else float(match[1])


def inputs_of(grid: Grid) -> str | None:
    """Read the digest that `mark_inputs` wrote; None where the header has none."""
    match = _MARK.fullmatch(bytes(grid.header[_FIELD].item()).decode("ascii", "replace"))
    return None if match is None else match[1]
