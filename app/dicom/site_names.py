"""What one site calls its series: names that a person has decided once, kept in a file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError
from app.dicom.naming import SeriesName

#: The key of series that are none of the four.
NONE: Final = "none"


@dataclass(frozen=True)
class SiteNames:
    """Hold a site's names of series.

    Attributes:
        patterns: what each name means: a sequence, or None where it is none of the four. `*` stands for any text, `?`
            for one character. Upper and lower case are one.
    """

    patterns: Mapping[str, Modality | None]

    def name(self, description: str) -> SeriesName | None:
        """Name a series by its description; None where the site says nothing of it."""
        text = _plain(description)
        found = {pattern: means for pattern, means in self.patterns.items() if _fits(text, pattern)}
        if not found:
            return None
        if len(set(found.values())) > 1:
            said = " and ".join(f"{pattern!r} as {means or NONE}" for pattern, means in found.items())
            return SeriesName(None, f"the file of --series-names has it by {said}", ask=True)
        pattern, means = next(iter(found.items()))
        return SeriesName(means, f"{means or NONE} by the file of --series-names ({pattern!r})", by_site=True)


def _fits(text: str, pattern: str) -> bool:
    # Brackets are letters here.
    return fnmatchcase(text, _plain(pattern).replace("[", "[[]"))


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def read_site_names(path: Path | None) -> SiteNames | None:
    """Read a file of series names.

    Args:
        path: TOML of `t1n`, `t1c`, `t2w`, `t2f` and `none`, each a list of descriptions. None where the site has none.

    Raises:
        UsageError: it cannot be read, is no such TOML, or has one name twice.
    """
    if path is None:
        return None
    try:
        form = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"the file of series names {path} cannot be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"the file of series names {path} is no TOML: {error}.") from None
    means: dict[str, Modality | None] = {**{m: m for m in MODALITIES}, NONE: None}
    patterns: dict[str, Modality | None] = {}
    for key, names in form.items():
        if key not in means:
            raise UsageError(f"{path}: {key!r} is no sequence; use {', '.join(means)}.")
        if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
            raise UsageError(f'{path}: {key} must be a list of names, such as {key} = ["AX T1*"].')
        for name in names:
            if name in patterns and patterns[name] != means[key]:
                raise UsageError(f"{path}: {name!r} stands under {patterns[name] or NONE} and under {key}.")
            patterns[name] = means[key]
    return SiteNames(patterns)
