"""Tell what Tetrad made from what a scanner made, by the header."""

from __future__ import annotations

import re
from typing import Final

from app.data.nifti_reader import Grid

#: How the header of every output of ours begins (`app.inference.pipeline.describe`).
SYNTHETIC: Final = "synthetic"
#: The same, or a map of confidence, and always our name.
_OURS: Final = re.compile(rf"(confidence of )?{SYNTHETIC} .*\btetrad\b", re.DOTALL)


def origin_of(grid: Grid) -> str:
    """Read what the header says of the image's making; empty where it says nothing."""
    return bytes(grid.header["descrip"].item()).decode("ascii", "replace")


def made_by_tetrad(grid: Grid) -> bool:
    """Tell whether the header says that Tetrad made the image, or a map of its confidence."""
    return _OURS.match(origin_of(grid)) is not None
