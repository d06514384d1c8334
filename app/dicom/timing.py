"""What echo, repetition and inversion time say of a series; all in milliseconds.

The ranges are those of clinical protocols at 1.5 and 3 T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from app.dicom.words import Weighting

#: A T2-weighted image has a longer echo than this, a T1-weighted one a shorter.
SHORTEST_T2_ECHO: Final = 60.0
LONGEST_T1_ECHO: Final = 40.0
#: A gradient echo with a longer echo is a T2* or an image of susceptibility.
_LONGEST_GRADIENT_ECHO: Final = 12.0
#: Where nothing says whether it is a gradient echo, a longer echo may be that of a T2*.
_LONGEST_UNSURE_ECHO: Final = 25.0
#: Repetition times between these are those of vessels, flow and susceptibility, not of a T1-weighted gradient echo.
_VESSELS: Final = (12.0, 90.0)
#: Share of the repetition time at which a balanced sequence has its echo, and how near to it.
_BALANCED: Final = 0.5
_NEAR: Final = 0.03
#: Inversion times of a STIR, which is none of the four, of a T1 FLAIR or MPRAGE, and of a T2-FLAIR.
_STIR: Final = (80.0, 350.0)
_T1_INVERSION: Final = (80.0, 1300.0)
#: A STIR has a longer repetition time than this, a T1-weighted inversion a shorter.
_SHORTEST_STIR: Final = 2500.0
_FLAIR_INVERSION: Final = (1400.0, 3000.0)


@dataclass(frozen=True)
class Timing:
    """Hold what a header says of how an image was made.

    Attributes:
        technique: ScanningSequence, such as SE, GR, IR, EP; empty where the header does not say.
        echo, repetition, inversion: milliseconds; None where the header has none.
        planar: whether it is echo-planar.
    """

    technique: tuple[str, ...] = ()
    echo: float | None = None
    repetition: float | None = None
    inversion: float | None = None
    planar: bool = False

    @property
    def is_known(self) -> bool:
        """Whether echo and repetition time are there."""
        return self.echo is not None and self.repetition is not None

    @property
    def is_gradient(self) -> bool:
        """Whether it is a gradient echo."""
        return "GR" in self.technique and "SE" not in self.technique


def none_of_four(timing: Timing, is_called_t1: bool = False) -> str | None:
    """Say why an image can be none of the four; None where it may be one.

    Args:
        is_called_t1: its name says so; then a short gradient echo is one, however it is timed.
    """
    inversion = timing.inversion
    if timing.planar or "EP" in timing.technique:
        return "it is echo-planar (diffusion, perfusion or function)"
    if timing.is_gradient:
        return _gradient_of_none(timing, is_called_t1)
    long = timing.repetition is None or timing.repetition >= _SHORTEST_STIR
    if inversion is not None and _STIR[0] <= inversion <= _STIR[1] and long:
        return f"its inversion time is that of a STIR ({inversion:g} ms)"
    return None


def _gradient_of_none(timing: Timing, is_called_t1: bool) -> str | None:
    """Say why a gradient echo is no T1-weighted one."""
    echo, repetition = timing.echo, timing.repetition
    if echo is not None and echo >= _LONGEST_GRADIENT_ECHO:
        return f"it is a gradient echo with a long echo ({echo:g} ms), such as a T2*"
    if echo is None or repetition is None or timing.inversion or is_called_t1:
        return None
    if _VESSELS[0] < repetition < _VESSELS[1]:
        return f"its repetition time is that of vessels or susceptibility ({repetition:g} ms)"
    balanced = repetition <= _VESSELS[0] and abs(echo / repetition - _BALANCED) < _NEAR
    return f"its timing is that of a balanced sequence ({echo:g} of {repetition:g} ms)" if balanced else None


def weighting_by_timing(timing: Timing) -> Weighting | None:
    """Tell the weighting by timing; None where it does not say."""
    echo, repetition, inversion = timing.echo, timing.repetition, timing.inversion or 0.0
    if echo is None or repetition is None or none_of_four(timing, is_called_t1=True):
        return None
    if timing.is_gradient:
        return "t1"
    inverted = "IR" in timing.technique or inversion > 0
    if _T1_INVERSION[0] <= inversion <= _T1_INVERSION[1]:
        return "t1" if echo < LONGEST_T1_ECHO and repetition < 3500 else None
    longest = LONGEST_T1_ECHO if timing.technique else _LONGEST_UNSURE_ECHO
    if echo < longest and repetition < 1400 and not inverted:
        return "t1"
    if _FLAIR_INVERSION[0] <= inversion <= _FLAIR_INVERSION[1]:
        return "t2f" if repetition >= 4000 and echo >= 70 else None
    return "t2w" if echo >= SHORTEST_T2_ECHO and repetition >= 2000 and not inverted else None
