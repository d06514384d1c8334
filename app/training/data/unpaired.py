"""Exams that lack the sequence which others teach: who may be among them, and batches of both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from app.core.constants import Modality
from app.core.errors import UsageError
from app.data.cases import also_in
from app.data.discovery import scan
from app.data.loading import needed_without
from app.preprocessing.normalization import BACKGROUND
from app.training.data.cache import CachedSubject
from app.training.data.core_slices import CoreSampler
from app.training.data.sections import SliceData
from app.training.data.slices import SampledStep, Sampler, Source

#: Added to the seed where unpaired slices are drawn, beyond every seed of a recipe: they are drawn by themselves.
_OTHER_SEED = 2**64


def check_unpaired(unpaired: Path | None, data: Path, validation: Path | None, withheld: Modality | None) -> None:
    """Check that exams without a sequence are wanted, are there, and are of patients of their own.

    Args:
        unpaired: their folder; None where there is none.
        data: folder of complete subjects; validation: another, if there is one.
        withheld: the sequence that they lack; None where the task learns from complete subjects alone.

    Raises:
        UsageError: they are not wanted, there is no such folder, or a patient is in one of the others too.
    """
    if unpaired is None:
        return
    if withheld is None:
        raise UsageError(
            "--unpaired is for recipes that make one sequence, or name the one that is lacking (--set "
            "data.withheld=t1c); this one learns from complete exams alone: leave it out."
        )
    if not unpaired.is_dir():
        raise UsageError(f"--unpaired {unpaired} does not exist; give a folder of exams that lack {withheld}.")
    names = _names(unpaired, withheld)
    for option, folder in (("--data", data), ("--validation", validation)):
        if folder is not None and (both := also_in(names, _names(folder, None))):
            raise UsageError(
                f"the patient of {both[0]} in --unpaired {unpaired} is in {option} {folder} as well; keep every "
                "patient in one of them."
            )


def _names(folder: Path, withheld: Modality | None) -> list[str]:
    """List the exams of a folder that have all sequences but the withheld one."""
    needed = set(needed_without(withheld))
    return [c.subject for c in scan(folder).cases if needed <= set(c.files)]


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
