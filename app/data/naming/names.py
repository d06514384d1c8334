"""Read from a file's name which sequence it is, of which subject, and in which version.

The whole name is read, not its last word. A name that could mean two things is not understood: a person is asked.
`app.data.naming.tables` holds the words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from app.core.constants import DISPLAY_NAMES, Modality
from app.data.file_formats import image_stem
from app.data.naming import tables as words
from app.data.naming.bids import read_bids
from app.data.naming.reading import NameReading

_WORD = re.compile(r"[^-_.\s()\[\]]+")
_SEPARATORS: Final = "-_. ()[]"
_WEIGHTING = re.compile(
    r"^(?P<lead>ce|gd|gad|c|post|pre|3d|2d|ax|sag|cor|r|w|rw|n4)?t(?P<number>[12])(?:w(?:i|eighted|td)?)?(?P<tail>\D.*)?$"
)
_FLAIR = re.compile(
    r"^(?:ce|gd|post|pre|3d|2d|ax|sag|cor|r|w|t2|t2w)?(?:flair|fla)(?:w|wi|3d|2d|ax|sag|cor|post|pre|gd|ce)?$"
)
_REGISTERED = re.compile(rf"^(?P<image>.+?)(?P<word>to|2|in)(?P<target>{'|'.join(words.TARGETS)})\w*$")
_OTHER_ENDINGS = ("mask", "segmentation", "seg", "labels", "label", "parcellation")
_NUMBER = re.compile(r"^[0-9]+[a-z]?$|^[0-9a-f]{8,}$")
_RUN = re.compile(r"^(?:run|rep|repeat|acq)(?P<number>\d*)$")
#: Parts of words that may be a spelling of contrast agent.
_CONTRAST_HINT = re.compile(r"gad|gd|contr|enhan|dotar|inject|post|^km|kontrast|^ce")
#: Glued endings of a T1 that name contrast agent, beside `CONTRAST_WORDS`.
_GLUED_CONTRAST = words.CONTRAST_WORDS | {"c", "+", "c+", "cw", "cwi"}
_GLUED_NATIVE = words.NATIVE_WORDS | {"n", "nw"}


@dataclass(frozen=True)
class _Word:
    text: str
    start: int


@dataclass(frozen=True)
class _Weighting:
    """What one word says of a sequence."""

    family: Literal["t1", "t2", "flair"]
    contrast: bool | None = None
    version: str = ""
    plain: bool = True
    time_word: bool = False


def read_name(stem: str) -> NameReading:
    """Read a file's name, given without its ending."""
    if (bids := read_bids(stem)) is not None:
        return bids
    found = _words_of(stem)
    cut, registered = _without_target(found)
    marks = [(i, w) for i, word in enumerate(cut) if (w := _weighting_of(word.text)) is not None]
    if not marks:
        return _without_sequence(cut)
    reading = _read_marked(stem, cut, marks)
    if registered and reading.kind == "sequence":
        return replace(reading, version=reading.version | {"registered"}, sure=False)
    return reading


def parse_name(path: Path) -> tuple[str, Modality] | None:
    """Read subject and sequence from a file name; None where it states no sequence.

    The folder's name stands for a subject that is not named.
    """
    stem = image_stem(path.name)
    reading = None if stem is None else read_name(stem)
    if reading is None or reading.kind != "sequence" or reading.sequence is None:
        return None
    subject = "_".join(filter(None, [reading.subject, reading.session]))
    return subject or path.parent.name, reading.sequence


# ------------------------------------------------------------ other names


def _words_of(stem: str) -> list[_Word]:
    """Split a name into words, lower case; `T2toT1` becomes three."""
    found = []
    for match in _WORD.finditer(stem):
        text = match[0].lower()
        glued = _REGISTERED.match(text)
        if glued is not None and _weighting_of(glued["image"]) is not None:
            parts = (glued["image"], "to", text[glued.start("target") :])
            found += [_Word(part, match.start()) for part in parts]
        else:
            found.append(_Word(text, match.start()))
    return _joined_pairs(found)


_PAIRS: Final = {
    ("dark", "fluid"): "darkfluid", ("skull", "stripped"): "skullstripped", ("skull", "strip"): "skullstrip",
    ("contrast", "enhanced"): "contrast", ("brain", "extracted"): "brain", ("no", "skull"): "noskull",
    ("with", "skull"): "withskull", ("non", "stripped"): "unstripped", ("not", "stripped"): "unstripped",
    ("with", "contrast"): "contrast", ("t2", "star"): "t2star", ("t1", "rho"): "t1rho", ("c", "+"): "c+",
    ("+", "c"): "+c",
    ("gd", "dtpa"): "gddtpa", ("hd", "bet"): "hdbet", ("bias", "field"): "biasfield", ("post", "con"): "postcon",
}  # fmt: skip


def _joined_pairs(found: list[_Word]) -> list[_Word]:
    """Join words that mean one thing together."""
    joined: list[_Word] = []
    for word in found:
        pair = (joined[-1].text, word.text) if joined else ("", "")
        if pair in _PAIRS:
            joined[-1] = replace(joined[-1], text=_PAIRS[pair])
        elif pair[0] in words.NEGATIONS and word.text in words.CONTRAST_WORDS and not word.text.startswith("post"):
            joined[-1] = replace(joined[-1], text="nocontrast")
        elif pair[0] == "biasfield" and word.text.startswith("corr"):
            joined[-1] = replace(joined[-1], text="biascorrected")
        else:
            joined.append(word)
    if any(w.text == "darkfluid" for w in joined):
        # Siemens' name of a FLAIR; a TIRM without it may be a STIR.
        joined = [w for w in joined if w.text != "tirm"]
    return joined


def _without_target(found: list[_Word]) -> tuple[list[_Word], bool]:
    """Cut the image that a scan was registered to (`T2_to_T1`)."""
    first = next((i for i, w in enumerate(found) if _weighting_of(w.text) is not None), None)
    if first is None:
        return found, False
    for i in range(first + 1, len(found)):
        if found[i].text not in words.TARGET_WORDS:
            continue
        following = found[i + 1].text if i + 1 < len(found) else ""
        named = following.startswith(words.TARGETS) or _weighting_of(following) is not None
        if named or (found[i].text in {"to", "onto"} and following):
            telling = words.STRIPPED_WORDS | words.OTHER_WORDS | words.RAW_WORDS
            return found[:i] + [w for w in found[i + 2 :] if w.text in telling], True
    return found, False


def _weighting_of(word: str) -> _Weighting | None:
    """Read one word as a sequence; None where it is none."""
    if word in words.FLAIR_WORDS or _FLAIR.match(word):
        return _Weighting("flair", time_word="post" in word or "pre" in word)
    match = _WEIGHTING.match(word)
    if match is None:
        return None
    lead, first, tail = match["lead"] or "", match["number"] == "1", match["tail"] or ""
    if lead in {"ce", "gd", "gad", "c", "post", "pre"}:
        if not first and lead == "c":
            return None
        if tail == "":
            contrast = lead != "pre" if first else None
            return _Weighting("t1" if first else "t2", contrast, plain=False, time_word=lead in words.TIME_WORDS)
    version = lead if lead in {"r", "w", "rw", "n4"} else ""
    return _glued(first, tail, version)


def _glued(first: bool, tail: str, version: str) -> _Weighting | None:
    """Read what follows `t1` or `t2` in one word."""
    family: Literal["t1", "t2"] = "t1" if first else "t2"
    if tail == "":
        return _Weighting(family, version=version, plain=not version)
    if not first and tail in {"f", "flair", "fl", "fla", "flairw", "darkfluid"}:
        return _Weighting("flair", version=version, plain=False)
    if first and tail in _GLUED_CONTRAST:
        return _Weighting("t1", True, version, plain=False, time_word=tail in words.TIME_WORDS)
    if first and tail in _GLUED_NATIVE:
        return _Weighting("t1", False, version, plain=False, time_word=tail in words.TIME_WORDS)
    is_version = len(tail) > 1 and tail in words.STRIPPED_WORDS | words.VERSION_WORDS | words.RAW_WORDS
    if is_version or tail in words.NEUTRAL_WORDS or (not first and tail in {"post", "gd", "ce", "pre"}):
        version = tail if is_version else version
        return _Weighting(family, version=version, plain=False, time_word=tail in words.TIME_WORDS)
    return None


def _without_sequence(found: Sequence[_Word]) -> NameReading:
    """Say what a name without any sequence is."""
    for word in reversed(found):
        glued = _WEIGHTING.match(word.text)
        tail = "" if glued is None else glued["tail"] or ""
        if {word.text, tail} & words.OTHER_WORDS or word.text.endswith(_OTHER_ENDINGS):
            return NameReading("other", f"{word.text!r} is none of the four sequences")
    return NameReading("unknown", "its name states no sequence")


def _read_marked(stem: str, found: list[_Word], marks: list[tuple[int, _Weighting]]) -> NameReading:
    """Read a name in which at least one word is a sequence."""
    index, mark = marks[-1]
    before, earlier = marks[-2] if len(marks) > 1 else (index, mark)
    between = [w.text for w in found[before + 1 : index]]
    if len(marks) == 1 or set(between) - words.NEUTRAL_WORDS - words.STRIPPED_WORDS - words.VERSION_WORDS:
        # Where words of a subject lie between, the earlier one belongs to its name (`t1c-BraTS_001-t1n`).
        reading = _read_phrase(stem, found, index, index, mark)
        return replace(reading, sure=reading.sure and len(marks) == 1)
    if len(marks) > 2 or not earlier.plain or set(between) - words.NEUTRAL_WORDS:
        if mark.family == "flair" and earlier.family == "t2" and len(marks) == 3 and before + 1 == index:
            # `P1_T1_T2_FLAIR`: the first counts time points.
            return _read_phrase(stem, found, before, index, mark)
        return NameReading("unknown", "its name states two sequences")
    time_point = _subject(stem, found, index)
    if mark.family == "flair":
        return _read_flair(_read_phrase(stem, found, before, index, mark), earlier, time_point)
    if between:
        return NameReading("unknown", "its name states two sequences")
    reading = _read_phrase(stem, found, index, index, mark)
    return replace(reading, subject=time_point, time_point=time_point, proves_time_point=True, sure=False)


def _read_flair(whole: NameReading, earlier: _Weighting, time_point: str) -> NameReading:
    """Read a FLAIR after a T1 or T2: of `T2_FLAIR` one sequence, unless a neighbour proves a time point."""
    if earlier.family == "t1" and whole.kind == "sequence":
        why = "its name states both T1 and FLAIR (a T1-weighted FLAIR, or a FLAIR of time point T1)"
        return replace(whole, kind="unknown", why=why, time_point=time_point)
    return replace(whole, time_point=time_point)


def _subject(stem: str, found: Sequence[_Word], index: int) -> str:
    return stem[: found[index].start].strip(_SEPARATORS)


def _read_phrase(stem: str, found: list[_Word], begin: int, end: int, mark: _Weighting) -> NameReading:
    """Read the words around a sequence: `begin` to `end` state it."""
    phrase = _Phrase(mark)
    start = begin
    while start > 0 and phrase.take_leading(found[start - 1].text):
        start -= 1
    subject = _subject(stem, found, start)
    for word in found[end + 1 :]:
        phrase.take(word.text)
    return phrase.close(subject)


class _Phrase:
    """Collect what the words around a sequence say of it."""

    def __init__(self, mark: _Weighting) -> None:
        self.mark = mark
        self.contrast: set[bool] = set() if mark.contrast is None else {mark.contrast}
        self.version: set[str] = {mark.version} - {""}
        self.rest: list[str] = []
        self.run = ""
        self.other = ""
        self.doubt = ""
        self.time_word = mark.time_word
        self.sure = True
        self.strong = bool(self.contrast) and not mark.time_word
        self._last = ""

    def take_leading(self, word: str) -> bool:
        """Take a word before the sequence; False where the subject's name begins."""
        if word in words.LEADING_OTHER_WORDS:
            self.other = word
        elif word in words.LEADING_CONTRAST_WORDS and self.mark.family == "t1":
            self.contrast.add(True)
            self.strong = True
        elif word == "nocontrast" and self.mark.family == "t1":
            self.contrast.add(False)
            self.strong = True
        elif word in words.TIME_WORDS and self.mark.family == "t1" and not self.contrast:
            self.doubt = f"{word!r} before T1 may speak of contrast agent or of a time point"
            return False
        elif word in words.LEADING_WORDS:
            if word in words.STRIPPED_WORDS | words.VERSION_WORDS:
                self.version.add(word)
        else:
            return False
        self.sure = False
        return True

    def take(self, word: str) -> None:
        """Take a word after the sequence."""
        last, self._last = self._last, word
        run = _RUN.match(word)
        if last in words.TIME_WORDS and word in words.TREATMENTS:
            self._undo_time_word(last, word)
        elif run is not None:
            self.run = run["number"] or "?"
        elif self.run == "?" and word.isdigit():
            self.run = word
        elif self.mark.family == "t1" and _names_contrast(word):
            self._take_contrast(word, True)
        elif self.mark.family == "t1" and word in words.NATIVE_WORDS:
            self._take_contrast(word, False)
        else:
            self._take_plain(word)

    def _take_contrast(self, word: str, value: bool) -> None:
        self.sure = False
        self.contrast.add(value)
        self.time_word |= word in words.TIME_WORDS
        self.strong |= word not in words.TIME_WORDS

    def _undo_time_word(self, last: str, word: str) -> None:
        """Take `post op` for a time, not for contrast agent."""
        if not self.strong:
            self.contrast.clear()
        self.time_word = False
        self.rest.append(f"{last}{word}")

    def _take_plain(self, word: str) -> None:
        if word in words.OTHER_WORDS or word.endswith(_OTHER_ENDINGS):
            self.other = self.other or word
        elif word in words.STRIPPED_WORDS | words.VERSION_WORDS | words.RAW_WORDS:
            self.version.add(word)
        elif word in words.TIME_WORDS or word in words.CONTRAST_WORDS:
            self.time_word |= word in words.TIME_WORDS
        elif word not in words.NEUTRAL_WORDS:
            self.rest.append(word)
            if self.mark.family == "t1" and not self.contrast and _hints_at_contrast(word):
                self.doubt = f"{word!r} may speak of contrast agent"
        self.sure = False

    def close(self, subject: str) -> NameReading:
        """Make the reading."""
        if self.other:
            return NameReading("other", f"{self.other!r} is none of the four sequences", subject)
        if len(self.contrast) == 2:
            self.doubt = "its name speaks of contrast agent and of none"
        if self.doubt:
            return NameReading("unknown", self.doubt, subject)
        sequence = self._sequence()
        return NameReading(
            "sequence", f"its name states {DISPLAY_NAMES[sequence]}", subject, sequence,
            version=frozenset(self.version), rest="_".join(self.rest), run=self.run.replace("?", ""), sure=self.sure,
            by_time_word=bool(self.contrast) and not self.strong, has_time_word=self.time_word,
        )  # fmt: skip

    def _sequence(self) -> Modality:
        if self.mark.family == "flair":
            return "t2f"
        if self.mark.family == "t2":
            return "t2w"
        return "t1c" if True in self.contrast else "t1n"


def _names_contrast(word: str) -> bool:
    # Agents are named gado-something.
    return word in words.CONTRAST_WORDS or word in {"c", "+"} or word.startswith("gad")


def _hints_at_contrast(word: str) -> bool:
    return bool(_CONTRAST_HINT.search(word)) and not any(word.endswith(t) for t in words.TREATMENTS)


def is_number(text: str) -> bool:
    """Tell whether the rest of a name is a number or an identifier."""
    return all(_NUMBER.match(part) for part in text.split("_"))
