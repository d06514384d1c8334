"""Random slices that show the tumour, half of them its core."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from app.core.constants import View
from app.data.labels import REGIONS
from app.preprocessing.slices import stack_slices
from app.training.data.cache import CachedSubject
from app.training.data.sections import SliceData, check_rules
from app.training.data.slices import Sampler


class CoreSliceData(SliceData):
    """Choice of slices by what of the tumour they show.

    Attributes:
        core_share: share of the slices with tumour that show its core.
    """

    core_share: float = 0.5

    @model_validator(mode="after")
    def _check_core(self) -> Self:
        check_rules({"data.core_share must be from 0 to 1": 0 <= self.core_share <= 1})
        return self


@dataclass(frozen=True)
class _Pools:
    """Hold slices of one view, n x 2 each: number of the subject, index of the slice.

    Attributes:
        core, edge: with tumour, and with or without its core.
        whole: all slices of subjects with a segmentation.
        unlabelled: all slices of subjects without one.
        unlabelled_share: of the subjects.
    """

    core: NDArray[np.int64]
    edge: NDArray[np.int64]
    whole: NDArray[np.int64]
    unlabelled: NDArray[np.int64]
    unlabelled_share: float

    @property
    def count(self) -> int:
        """Slices that an epoch shows."""
        return len(self.core) + len(self.edge) + len(self.unlabelled)


class CoreSampler(Sampler):
    """Draw every slice of a kind equally often.

    Where a subject has no segmentation nobody knows where its tumour is: it shows any slice with enough brain, as often
    as the number of such subjects asks for. Tumour types are not balanced.

    Args:
        subjects, recipe, background, seed, rank: as `Sampler`.

    Raises:
        UsageError: no subject has a slice with enough brain.
    """

    def __init__(
        self,
        subjects: Sequence[CachedSubject],
        recipe: CoreSliceData,
        background: float,
        *,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        # The pools below say what shows a tumour: nobody is left out for having no segmentation.
        super().__init__(subjects, recipe.model_copy(update={"tumour_share": 0.0}), background, seed=seed, rank=rank)
        self._subjects, self._shares = subjects, (recipe.tumour_share, recipe.core_share)
        self._pools = {view: _pools(subjects, view, recipe) for view in recipe.views}

    @property
    def count(self) -> int:
        """Slices of all views that show tumour, or may."""
        return sum(pools.count for pools in self._pools.values()) or super().count

    def choose(self, view: View, own: np.random.Generator) -> tuple[CachedSubject, int]:
        """Draw a kind of slice, then one of that kind."""
        pools, (tumour_share, core_share) = self._pools[view], self._shares
        labelled, ill, core = own.random(3) >= (pools.unlabelled_share, 1 - tumour_share, 1 - core_share)
        kinds = [pools.core, pools.edge] if core else [pools.edge, pools.core]
        wanted = [pools.unlabelled] if not labelled else [*(kinds if ill else ()), pools.whole]
        pool = next(p for p in (*wanted, pools.whole, pools.unlabelled) if len(p))
        number, index = pool[int(own.integers(len(pool)))]
        return self._subjects[number], int(index)


def _pools(subjects: Sequence[CachedSubject], view: View, recipe: CoreSliceData) -> _Pools:
    rows, columns = recipe.canvas.sizes[view]
    enough = max(1, round(recipe.min_tumour_share * rows * columns))
    kinds: dict[str, list[NDArray[np.int64]]] = {"core": [], "edge": [], "whole": [], "unlabelled": []}
    for number, subject in enumerate(subjects):
        whole = subject.slices(view, recipe.min_brain_pixels)
        if subject.labels is None:
            kinds["unlabelled"].append(_numbered(number, whole))
            continue
        core = np.asarray(stack_slices(np.isin(subject.labels, REGIONS["TC"]), view).any(axis=(1, 2)))
        ill = subject.slices(view, recipe.min_brain_pixels, enough)
        kinds["whole"].append(_numbered(number, whole))
        kinds["core"].append(_numbered(number, ill[core[ill]]))
        kinds["edge"].append(_numbered(number, ill[~core[ill]]))
    joined = {kind: np.concatenate([np.empty((0, 2), np.int64), *parts]) for kind, parts in kinds.items()}
    return _Pools(**joined, unlabelled_share=sum(s.labels is None for s in subjects) / len(subjects))


def _numbered(number: int, slices: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.stack([np.full_like(slices, number), slices], axis=1)
