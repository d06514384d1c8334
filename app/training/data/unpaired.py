"""Exams that lack the sequence which others teach: who may be among them, and batches of both."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from app.core.constants import Modality
from app.core.errors import UsageError
from app.data.cases import Case, patient_of
from app.data.discovery import scan
from app.data.loading import needed_without
from app.preprocessing.normalization import BACKGROUND
from app.training.data.cache import CachedSubject
from app.training.data.content_marks import content_mark
from app.training.data.core_slices import CoreSampler
from app.training.data.sections import SliceData
from app.training.data.slices import SampledStep, Sampler, Source

log = logging.getLogger(__name__)

#: Added to the seed where unpaired slices are drawn, beyond every seed of a recipe: they are drawn by themselves.
_OTHER_SEED = 2**64


def check_unpaired(
    unpaired: Path | None, data: Path, validation: Path | None, withheld: Modality | None
) -> frozenset[str]:
    """Check that exams without a sequence are wanted and there; give those to be left out, and say why.

    An exam is left out where its patient, by name or by a file's content, is among the complete or validation exams.

    Args:
        unpaired: their folder; None where there is none.
        data: folder of complete subjects; validation: another, if there is one.
        withheld: the sequence that they lack; None where the task learns from complete subjects alone.

    Raises:
        UsageError: they are not wanted, there is no such folder, or all of them would be left out.
    """
    if unpaired is None:
        return frozenset()
    if withheld is None:
        raise UsageError(
            "--unpaired is for recipes that make one sequence, or name the one that is lacking (--set "
            "data.withheld=t1c); this one learns from complete exams alone: leave it out."
        )
    if not unpaired.is_dir():
        raise UsageError(f"--unpaired {unpaired} does not exist; give a folder of exams that lack {withheld}.")
    cases = _usable(unpaired, withheld)
    out: dict[str, Path] = {}
    for folder in (data, validation):
        if folder is not None:
            out |= dict.fromkeys(_shared(cases, _usable(folder, None)), folder)
    if cases and len(out) == len(cases):
        raise UsageError(
            f"every patient of --unpaired {unpaired} is in {out[cases[0].subject]} as well; give exams of others."
        )
    for name, folder in out.items():
        log.warning("%s of --unpaired is left out: its patient is in %s as well.", name, folder)
    if cases and all(withheld in case.files for case in cases):
        log.warning(
            "All exams of --unpaired %s have %s; it is not looked at. Complete exams teach more in --data.",
            unpaired, withheld,
        )  # fmt: skip
    return frozenset(out)


def _usable(folder: Path, withheld: Modality | None) -> list[Case]:
    """List the exams of a folder that have all sequences but the withheld one."""
    needed = set(needed_without(withheld))
    return [c for c in scan(folder).cases if needed <= set(c.files)]


def _shared(cases: Iterable[Case], others: Iterable[Case]) -> list[str]:
    """Name the exams whose patient is among the others', by name or by the content of a file."""
    others = list(others)
    patients = {patient_of(c.subject) for c in others}
    contents = {content_mark(f) for c in others for f in c.files.values()}
    return [
        c.subject
        for c in cases
        if patient_of(c.subject) in patients or any(content_mark(f) in contents for f in c.files.values())
    ]


class PairedSource:
    """Batches of complete exams, alone or beside exams that lack a sequence.

    Args:
        paired, unpaired: the subjects.
        recipe: choice of slices.
        size: slices of a batch.
        share: of them, slices of exams that lack a sequence; at least one, and not all.
        kind: what draws slices.
        max_shift, prefetch: as `Source`.
        seed, rank: as `Sampler`.

    Raises:
        UsageError: no subject of one kind has a slice with enough brain.
    """

    def __init__(
        self,
        paired: Sequence[CachedSubject],
        unpaired: Sequence[CachedSubject],
        recipe: SliceData,
        size: int,
        *,
        share: float = 0.5,
        kind: Callable[..., Sampler] = CoreSampler,
        max_shift: int = 0,
        seed: int = 0,
        rank: int = 0,
        prefetch: bool = False,
    ) -> None:
        self.sampler = kind(paired, recipe, BACKGROUND, seed=seed, rank=rank)
        others = kind(unpaired, recipe, BACKGROUND, seed=seed + _OTHER_SEED, rank=rank)
        lacking = min(max(1, round(size * share)), max(1, size - 1))
        self._alone = Source(self.sampler, size, max_shift, prefetch)
        self._paired = Source(self.sampler, max(1, size - lacking), max_shift, prefetch)
        self._unpaired = Source(others, lacking, max_shift, prefetch)

    def alone(self, step: int) -> SampledStep:
        """Give a batch of complete exams."""
        return self._alone.at(step)

    def both(self, step: int) -> tuple[SampledStep, SampledStep]:
        """Give what a batch shows of complete exams, and of the others."""
        return self._paired.at(step), self._unpaired.at(step)
