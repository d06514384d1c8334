"""Which sequence a series is, by its own header: timing first, words second; where they disagree, a person is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from app.core.constants import Modality
from app.dicom.timing import LONGEST_T1_ECHO, SHORTEST_T2_ECHO, Timing, none_of_four, weighting_by_timing
from app.dicom.words import (
    Weighting,
    is_not_fit,
    is_unsure,
    no_sequence,
    says_contrast,
    says_native,
    weighting_by_words,
)

#: Values of ImageType of what is no plain sequence.
_NO_SEQUENCE: Final = {
    "ADC", "TRACEW", "FA", "MIP", "MNIP", "PROJECTION IMAGE", "PERFUSION", "PHASE", "P", "SUBTRACTION", "SUB",
    "LOCALIZER", "CSA REPORT", "SCREEN SAVE", "MPR", "REFORMATTED", "DIFFUSION", "TOF", "T2_STAR", "T2*", "VELOCITY",
    "M_PCA", "PCA", "OUT_PHASE", "OPP_PHASE", "FAT", "F", "ASL", "DSC", "DCE", "RCBV", "CBV", "CBF", "MTT", "TTP",
    "B0 MAP", "FIELD_MAP", "INV1", "INV2", "FMRI", "SPECTROSCOPY", "PROTON_DENSITY", "STIR",
}  # fmt: skip


@dataclass(frozen=True)
class SeriesHeader:
    """Hold what a series says of itself.

    Attributes:
        description: SeriesDescription; the protocol's name where it is empty. Only the series' own name counts: that of
            the protocol may be that of the whole exam.
        timing: how it was made.
        agent: whether a contrast agent is named.
        image_type: values of ImageType.
        b_value: of diffusion; None without.
        body_part: BodyPartExamined.
        moment: date and time of its acquisition, to be compared; None where the header does not say.
    """

    description: str = ""
    timing: Timing = field(default_factory=Timing)
    agent: bool = False
    image_type: tuple[str, ...] = ()
    b_value: float | None = None
    body_part: str = ""
    moment: str | None = None

    @property
    def is_derived(self) -> bool:
        """Whether it was computed of another series."""
        return bool(self.image_type) and self.image_type[0].upper() == "DERIVED"


@dataclass(frozen=True)
class SeriesName:
    """Say what a series was taken for.

    Attributes:
        sequence: None where it is none, or a person must say.
        why: the reason in words.
        ask: whether it may be a sequence and a person must say which.
        sure: of a T1, whether name or agent says that it is with contrast, or without.
        agent_is_everywhere: whether all series of the study name an agent, so that it says nothing.
        by_site: whether a person has decided it, by a file of series names.
    """

    sequence: Modality | None
    why: str
    ask: bool = False
    sure: bool = True
    agent_is_everywhere: bool = False
    by_site: bool = False


def name_series(header: SeriesHeader, agent_counts: bool = True) -> SeriesName:
    """Name a series by its own header.

    Args:
        agent_counts: whether the agent that it names says anything; where all series of a study name one, it does not.
    """
    if reason := _exclusion(header):
        return SeriesName(None, reason)
    timing, words = weighting_by_timing(header.timing), weighting_by_words([header.description])
    if timing == "t2f" and words == "t2w":
        # A T2 with the inversion of a FLAIR is one.
        words = None
    if (
        timing == "t2w"
        and words == "t2f"
        and header.timing.inversion is None
        and (header.timing.repetition or 0) >= 6000
    ):
        # A FLAIR whose header leaves its inversion out.
        timing = None
    if doubt := _doubt(header, timing, words):
        return SeriesName(None, doubt, ask=True)
    weighting = words or timing
    if weighting is None:
        return _unnamed(header)
    source = " and ".join([*(["timing"] if timing else []), *(["name"] if words else [])])
    if weighting == "t1":
        return _with_or_without_contrast(header, source, agent_counts)
    return SeriesName(weighting, f"{weighting} by {source}")


def _exclusion(header: SeriesHeader) -> str | None:
    for kind in (t.upper() for t in header.image_type):
        if kind in _NO_SEQUENCE or kind.endswith(" MAP") or kind.endswith("_MAP"):
            return f"its image type is {kind}"
    if header.b_value is not None and header.b_value > 50:
        return f"it is diffusion-weighted (b {header.b_value:.0f})"
    if "SPINE" in header.body_part.upper():
        return f"it shows the {header.body_part.lower()}"
    if word := no_sequence(header.description):
        return f"its name says {word!r}"
    return none_of_four(header.timing, weighting_by_words([header.description]) == "t1")


def _doubt(header: SeriesHeader, timing: Weighting | None, words: Weighting | None) -> str | None:
    """Say why a person must look: timing and name disagree, or timing is that of nothing such."""
    if is_not_fit(header.description):
        return "its name says that it is not for diagnosis"
    if timing and words and timing != words:
        return f"its timing is that of {timing}, its name says {words}"
    if timing or not words or header.timing.echo is None:
        # Of a short gradient echo alone nobody can tell what it is for.
        bare = timing == "t1" and not words and header.timing.is_gradient and not header.timing.inversion
        return "it is a gradient echo that no name explains" if bare and header.description else None
    echo = header.timing.echo
    wrong = echo > LONGEST_T1_ECHO if words == "t1" else echo < SHORTEST_T2_ECHO
    return f"its name says {words}, and it has an echo of {echo:g} ms" if wrong else None


def _unnamed(header: SeriesHeader) -> SeriesName:
    if header.timing.is_known and header.description:
        return SeriesName(None, "its timing is that of none of the four, and its name says nothing")
    return SeriesName(None, "neither timing nor name says what it is", ask=True)


def _with_or_without_contrast(header: SeriesHeader, source: str, agent_counts: bool) -> SeriesName:
    text = header.description
    native, named, agent = says_native(text), says_contrast(text), header.agent and agent_counts
    doubts = {
        "its name says both with and without contrast": native and named,
        "its name says without contrast, its header names an agent": native and agent,
        "an agent is named in every series, so it may be before or after": header.agent
        and not (agent or native or named),
        "its name may mean with contrast or without": is_unsure(text) and not (agent or native or named),
    }
    if doubt := next((why for why, there in doubts.items() if there), None):
        return SeriesName(None, doubt, ask=True)
    if named or agent:
        return SeriesName("t1c", f"T1 by {source}, contrast by {'name' if named else 'header'}")
    how = "without contrast by name" if native else "no contrast named"
    return SeriesName("t1n", f"T1 by {source}, {how}", sure=native)
