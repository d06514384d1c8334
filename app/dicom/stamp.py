"""Write a word into the pixels of slices, for viewers that show no description beside an image."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from app.core.types import MaskArray

WORD: Final = "SYNTHETIC"
#: Of the slice: how wide the word is, and how far from the edges it stands.
_WIDTH, _MARGIN = 0.4, 0.03
#: Letters that are lower than this many pixels cannot be read.
_LEAST_HEIGHT: Final = 8


def stamped(values: NDArray[np.float32], brightness: float) -> NDArray[np.float32]:
    """Write `SYNTHETIC` into the lower left corner of each slice, as viewers show it.

    Args:
        values: axes column, row, slice.
        brightness: of the letters, in the units of the values.

    Returns:
        A copy. What the letters cover is lost.
    """
    columns, rows = values.shape[:2]
    letters = _letters(max(round(columns * _WIDTH), 1))
    margin = round(min(columns, rows) * _MARGIN)
    wide, high = min(letters.shape[0], columns - margin), min(letters.shape[1], rows - margin)
    place = np.zeros((columns, rows), dtype=bool)
    place[margin : margin + wide, rows - margin - high : rows - margin] = letters[:wide, letters.shape[1] - high :]
    marked = values.copy()
    marked[place] = brightness
    return marked


def _letters(width: int) -> MaskArray:
    """Draw the word about so many pixels wide, column by row, without empty border."""
    size = _LEAST_HEIGHT
    font = ImageFont.load_default(size)
    length = font.getlength(WORD)
    font = ImageFont.load_default(max(size, round(size * width / length)))
    left, top, right, bottom = (round(edge) for edge in font.getbbox(WORD))
    canvas = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(canvas).text((-left, -top), WORD, fill=255, font=font)
    return np.asarray(canvas).T > 127
