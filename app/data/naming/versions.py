"""Choose among several versions of one scan (with skull, without, corrected), alike for all sequences of an exam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from app.core.constants import Modality
from app.data.naming.reading import NamedImage
from app.data.naming.tables import RAW_WORDS, STRIPPED_WORDS

#: The rank of a version that others are preferred to.
RAW: Final = 3


def choose_versions(
    candidates: Mapping[Modality, Sequence[NamedImage]],
) -> tuple[dict[Modality, list[NamedImage]], list[NamedImage]]:
    """Choose one version for all sequences: the one that most have, without skull before others.

    Returns:
        Per sequence the files of the chosen version (several are runs of one scan), and the files passed over.
    """
    versions = {i.reading.version for images in candidates.values() for i in images}
    order = sorted(versions, key=lambda v: (-_count(candidates, v), rank(v), len(v), sorted(v)))
    chosen: dict[Modality, list[NamedImage]] = {}
    others: list[NamedImage] = []
    for modality, images in candidates.items():
        version = next(v for v in order if any(i.reading.version == v for i in images))
        chosen[modality] = [i for i in images if i.reading.version == version]
        others += [passed_over(i, modality) for i in images if i.reading.version != version]
    return chosen, others


def rank(version: frozenset[str]) -> int:
    """Rank a version by its words: 0 without skull, 1 plain, 2 processed, 3 raw."""
    if version & RAW_WORDS:
        return RAW
    if version & STRIPPED_WORDS:
        return 0
    return 2 if version else 1


def _count(candidates: Mapping[Modality, Sequence[NamedImage]], version: frozenset[str]) -> int:
    return sum(any(i.reading.version == version for i in images) for images in candidates.values())


def passed_over(image: NamedImage, modality: Modality) -> NamedImage:
    """Return an image as one that is passed over for another version."""
    why = f"another version of the {modality} is used"
    return replace(image, reading=replace(image.reading, kind="other", why=why))
