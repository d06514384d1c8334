"""Choose among several versions of one scan (with skull, without, corrected), alike for all sequences of an exam."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from app.core.constants import Modality
from app.data.naming.reading import NamedImage
from app.data.naming.tables import RAW_WORDS, STRIPPED_WORDS

#: The ranks of a version without skull, and of one that others are preferred to.
STRIPPED: Final = 0
RAW: Final = 3


def choose_versions(
    candidates: Mapping[Modality, Sequence[NamedImage]],
) -> tuple[dict[Modality, list[NamedImage]], list[NamedImage], list[NamedImage]]:
    """Choose one version for all sequences: the one that most have, without skull before others.

    Returns:
        Per sequence the files of the chosen version (several are runs of one scan); the files passed over; and those
        that cannot be used with the others, since only one of both is said to be without skull.
    """
    versions = {i.reading.version for images in candidates.values() for i in images}
    order = sorted(versions, key=lambda v: (-_count(candidates, v), rank(v), len(v), sorted(v)))
    chosen: dict[Modality, list[NamedImage]] = {}
    others: list[NamedImage] = []
    for modality, images in candidates.items():
        version = next(v for v in order if any(i.reading.version == v for i in images))
        chosen[modality] = [i for i in images if i.reading.version == version]
        others += [passed_over(i, modality) for i in images if i.reading.version != version]
    stripped = bool(order) and rank(order[0]) == STRIPPED
    mixed = [m for m, images in chosen.items() if (rank(images[0].reading.version) == STRIPPED) != stripped]
    why = "by their names only some sequences of the exam are without skull"
    doubted = [image.doubted(why) for m in mixed for image in chosen.pop(m)]
    return chosen, others, doubted


def rank(version: frozenset[str]) -> int:
    """Rank a version by its words: 0 without skull, 1 plain, 2 processed, 3 raw."""
    if version & RAW_WORDS:
        return RAW
    if version & STRIPPED_WORDS:
        return STRIPPED
    return 2 if version else 1


def _count(candidates: Mapping[Modality, Sequence[NamedImage]], version: frozenset[str]) -> int:
    return sum(any(i.reading.version == version for i in images) for images in candidates.values())


def passed_over(image: NamedImage, modality: Modality) -> NamedImage:
    """Return an image as one that is passed over for another version."""
    why = f"another version of the {modality} is used"
    return replace(image, reading=replace(image.reading, kind="other", why=why))
