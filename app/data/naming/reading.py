"""Say what the name of an image means."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from app.core.constants import Modality

Kind = Literal["sequence", "other", "unknown"]


@dataclass(frozen=True)
class NameReading:
    """Say what a file's name means.

    Attributes:
        kind: `sequence` (one of the four), `other` (a mask, a map, another image: passed over) or `unknown`.
        why: the reason, in a few words, for a person.
        subject: the text before the sequence; empty where the name states the sequence alone.
        sequence: the sequence; None unless `kind` is `sequence`, or a time point may hide it.
        session: of a BIDS name.
        version: words on processing, such as `brain` or `n4`.
        rest: words that are not known, which may number the subject or the series.
        run: number of a repeated scan.
        sure: whether the name is a plain one, in which nothing was guessed.
        by_time_word: whether `post` or `pre` alone told contrast.
        has_time_word: whether the name bears `post` or `pre`.
        time_point: the subject's name if a T1 or T2 before the sequence counts time points.
        proves_time_point: whether the name has no other meaning than that.
    """

    kind: Kind
    why: str
    subject: str = ""
    sequence: Modality | None = None
    session: str = ""
    version: frozenset[str] = frozenset()
    rest: str = ""
    run: str = ""
    sure: bool = False
    by_time_word: bool = False
    has_time_word: bool = False
    time_point: str | None = None
    proves_time_point: bool = False


@dataclass(frozen=True)
class NamedImage:
    """Hold one image file with what its name means."""

    path: Path
    reading: NameReading

    @property
    def sequence(self) -> Modality | None:
        """Give the sequence; None where it is none, or not understood."""
        return self.reading.sequence if self.reading.kind == "sequence" else None

    def doubted(self, why: str) -> NamedImage:
        """Return the same image as one that is not understood."""
        return replace(self, reading=replace(self.reading, kind="unknown", why=why))
