"""Read the naming rules that a user teaches (`--name t1c=*_POST.nii.gz`)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError
from app.data.naming.reading import NameReading

#: What a rule names that is to be passed over.
IGNORED = "none"


@dataclass(frozen=True)
class NamingRule:
    """Say which sequence the files of a pattern are.

    Attributes:
        sequence: None passes the files over.
        pattern: as given: `*` stands for any text, `?` for one character. The first `*` is the subject's name.
        whole_path: whether the pattern is of the path below the input, not of the name alone.
    """

    sequence: Modality | None
    pattern: str
    expression: re.Pattern[str]
    whole_path: bool

    def read(self, path: Path, root: Path) -> NameReading | None:
        """Read a file's name by this rule; None where it does not match."""
        text = path.relative_to(root).as_posix() if self.whole_path else path.name
        match = self.expression.fullmatch(text)
        if match is None:
            return None
        why = f"--name {self.sequence or IGNORED}={self.pattern}"
        if self.sequence is None:
            return NameReading("other", why)
        subject = match["subject"].strip("-_. ") if "subject" in match.groupdict() else ""
        return NameReading("sequence", why, subject.rsplit("/", 1)[-1], self.sequence, sure=True)


def parse_rules(texts: Iterable[str]) -> tuple[NamingRule, ...]:
    """Read the rules of a command line.

    Raises:
        UsageError: a text is not of the form `sequence=pattern`.
    """
    return tuple(map(_parse, texts))


def _parse(text: str) -> NamingRule:
    sequence, equals, pattern = text.partition("=")
    sequence = sequence.strip().lower()
    if not equals or not pattern or sequence not in (*MODALITIES, IGNORED):
        choices = ", ".join((*MODALITIES, IGNORED))
        raise UsageError(f"--name {text!r} is no rule; write SEQUENCE=PATTERN, as t1c=*_POST.nii.gz ({choices}).")
    modality: Modality | None = next((m for m in MODALITIES if m == sequence), None)
    return NamingRule(modality, pattern, _expression(pattern), "/" in pattern)


def _expression(pattern: str) -> re.Pattern[str]:
    """Translate a pattern; its first `*` after the last slash names the subject."""
    cut = pattern.rfind("/") + 1
    parts, named = [], False
    for index, character in enumerate(pattern):
        if character == "*" and index >= cut and not named:
            parts.append("(?P<subject>.*?)")
            named = True
        else:
            parts.append({"*": ".*", "?": "."}.get(character, re.escape(character)))
    return re.compile("".join(parts), re.IGNORECASE | re.DOTALL)
