"""Which sequence a series is: physics first, words second; where they disagree, a person is asked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from app.core.constants import Modality

Weighting = Literal["t1", "t2f", "t2w"]

#: Image types and words of series that are no plain sequence.
_DERIVED: Final = {
    "ADC", "TRACEW", "FA", "MIP", "MNIP", "PROJECTION IMAGE", "PERFUSION", "PHASE", "P", "SUBTRACTION", "LOCALIZER",
    "CSA REPORT", "SCREEN SAVE", "MPR",
}  # fmt: skip
_NO_SEQUENCE: Final = re.compile(
    r"(?<![a-z])(rois?|adc|dwi|dti|tracew?|perf|perfusion|pwi|dsc|dce|swi|phase|loc|locali[sz]er|scout|survey|sub"
    r"|subtraction|mip|minip|mra|mrv|tof|fmri|bold|p?c?asl|spectro|spectroscopy|mrs|svs|press|csi|field.?map|calibration"
    r"|asset cal|pd|pdw|proton|swan|venbold|diff|diffusion|tensor|resolve|ivim|ep2d|epi|epfid2d|flow|cine|medic|ciss"
    r"|fiesta|trufi|t2.?star|hemo)(?![a-z])",
)
_WORDS: Final[dict[Weighting, re.Pattern[str]]] = {
    "t2f": re.compile(r"flair|dark.?fluid|tirm"),
    "t1": re.compile(r"(?<![a-rt-z0-9])t1|mprage|spgr|bravo|tfl3d|vibe"),
    "t2w": re.compile(r"(?<![a-rt-z0-9*])t2(?!\s*\*)"),
}
_CONTRAST: Final = re.compile(r"\+ ?c\b|(?<![a-z])(gad|gd|post|ce|contrast|km|stealth)(?![a-z])|\+gd|t1c")
_NATIVE: Final = re.compile(
    r"(?<![a-z])(pre|without|native|nativ|non|no|ohne|w/o)(?![a-z])"
    r"[ _-]*((contrast|gad[a-z]*|gd|ce|km)(?![a-z]))?"
)
#: Milliseconds: a T2-weighted image has a longer echo than this, a T1-weighted one a shorter.
_SHORTEST_T2_ECHO: Final = 60.0
_LONGEST_T1_ECHO: Final = 40.0
#: Milliseconds: where nothing says whether it is a gradient echo, a longer echo may be that of a T2*.
_LONGEST_UNSURE_ECHO: Final = 25.0


@dataclass(frozen=True)
class SeriesHeader:
    """Hold what a series says of itself.

    Attributes:
        description: of the series, the protocol and the sequence, each alone.
        technique: ScanningSequence, such as SE, GR, IR; empty where the header does not say.
        echo, repetition, inversion: milliseconds; None where the header has none.
        agent: whether a contrast agent is named.
        image_type: values of ImageType.
        b_value: of diffusion; None without.
    """

    description: tuple[str, ...] = ()
    technique: tuple[str, ...] = ()
    echo: float | None = None
    repetition: float | None = None
    inversion: float | None = None
    agent: bool = False
    image_type: tuple[str, ...] = ()
    b_value: float | None = None


@dataclass(frozen=True)
class SeriesName:
    """Say what a series was taken for.

    Attributes:
        sequence: None where it is none, or a person must say.
        why: the reason in words.
        ask: whether it may be a sequence and a person must say which.
    """

    sequence: Modality | None
    why: str
    ask: bool = False


def name_series(header: SeriesHeader) -> SeriesName:
    """Name a series by its own header."""
    if reason := _exclusion(header):
        return SeriesName(None, reason)
    physics, words = weighting_by_physics(header), weighting_by_words(header.description)
    if physics and words and physics != words:
        return SeriesName(None, f"its timing is that of {physics}, its name says {words}", ask=True)
    if words and not physics and (doubt := _doubt(header, words)):
        return SeriesName(None, doubt, ask=True)
    source = " and ".join([*(["timing"] if physics else []), *(["name"] if words else [])])
    weighting = physics or words
    if weighting == "t1":
        return _with_or_without_contrast(header, source)
    if weighting is None:
        return SeriesName(None, "neither timing nor name says what it is", ask=True)
    return SeriesName(weighting, f"{weighting} by {source}")


def _with_or_without_contrast(header: SeriesHeader, source: str) -> SeriesName:
    texts = [text.lower() for text in header.description]
    native = any(_NATIVE.search(t) for t in texts)
    # What is left beside `without contrast`.
    named = any(_CONTRAST.search(_NATIVE.sub(" ", t)) for t in texts)
    if native and (named or header.agent):
        both = "its name says both with and without contrast"
        why = both if named else "its name says without contrast, its header names an agent"
        return SeriesName(None, why, ask=True)
    if header.agent or named:
        return SeriesName("t1c", f"T1 by {source}, contrast by {'header' if header.agent else 'name'}")
    return SeriesName("t1n", f"T1 by {source}, no contrast named")


def _doubt(header: SeriesHeader, words: Weighting) -> str | None:
    """Say why a name is not believed, where timing fits no weighting: it may be a T2* that is called T2."""
    if header.echo is None:
        return None
    wrong = header.echo > _LONGEST_T1_ECHO if words == "t1" else header.echo < _SHORTEST_T2_ECHO
    return f"its name says {words}, and it has an echo of {header.echo:g} ms" if wrong else None


def _exclusion(header: SeriesHeader) -> str | None:
    if kind := next((t for t in header.image_type if t.upper() in _DERIVED), None):
        return f"its image type is {kind}"
    if header.b_value is not None and header.b_value > 50:
        return f"it is diffusion-weighted (b {header.b_value:.0f})"
    # Each field alone: glued together, `t2 *tse` would be a T2*.
    if word := next((m[0] for t in header.description if (m := _NO_SEQUENCE.search(t.lower()))), None):
        return f"its name says {word!r}"
    gradient = "GR" in header.technique and "SE" not in header.technique
    if gradient and weighting_by_words(header.description) == "t2w":
        return "it is a gradient echo that is called T2 (a T2*, or balanced)"
    return None


def weighting_by_physics(header: SeriesHeader) -> Weighting | None:
    """Tell the weighting by echo, repetition and inversion time; None where they do not say."""
    echo, repetition, inversion = header.echo, header.repetition, header.inversion or 0.0
    if echo is None or repetition is None:
        return None
    gradient = "GR" in header.technique
    longest = _LONGEST_T1_ECHO if header.technique else _LONGEST_UNSURE_ECHO
    if (
        (gradient and echo < 12)
        or (600 <= inversion <= 1300 and echo < _LONGEST_T1_ECHO and repetition < 3500)
        or (not gradient and echo < longest and repetition < 1400)
    ):
        return "t1"
    if 1400 <= inversion <= 3000 and repetition >= 4000 and echo >= 70:
        return "t2f"
    return "t2w" if echo >= _SHORTEST_T2_ECHO and repetition >= 2000 and not inversion and not gradient else None


def weighting_by_words(descriptions: Sequence[str]) -> Weighting | None:
    """Tell the weighting by the names of series, protocol and sequence; None where they do not say, or contradict."""
    found = {weighting for text in descriptions if (weighting := _weighting_of(text.lower()))}
    return found.pop() if len(found) == 1 else None


def _weighting_of(text: str) -> Weighting | None:
    there = [weighting for weighting, pattern in _WORDS.items() if pattern.search(text)]
    if "t1" in there and "t2w" not in there:
        # A T1 FLAIR is a T1.
        return "t1"
    # In this order: a FLAIR is often called T2 as well.
    return there[0] if there else None
