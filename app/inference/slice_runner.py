"""Runs a generator over slices, in batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from app.core.constants import MODALITIES, VIEWS, Modality, View
from app.core.errors import CaseError
from app.core.types import SliceStack, VolumeArray
from app.inference.backends import Backend
from app.preprocessing.slices import Window, crop

log = logging.getLogger(__name__)


class Batches:
    """How many slices a call takes: fewer once memory ran out, and it stays so."""

    def __init__(self, size: int) -> None:
        self.size = size

    def each(self, count: int, step: Callable[[int, int], None]) -> None:
        """Calls `step(first, end)` until all of `count` are done.

        Raises:
            CaseError: not even one slice fits into memory.
        """
        done = 0
        while done < count:
            end = min(done + self.size, count)
            try:
                step(done, end)
            except MemoryError as error:
                self._halve(error)
                continue
            done = end

    def _halve(self, error: MemoryError) -> None:
        if self.size == 1:
            raise CaseError(f"not even one slice fits into the device's memory ({error}); use --device cpu.") from None
        self.size //= 2
        log.warning("Memory ran out: batches are now of %d slices.", self.size)


class SliceRunner:
    """Cuts volumes into slices and runs a backend over them."""

    def __init__(self, backend: Backend, batch_size: int) -> None:
        self.backend, self.batches = backend, Batches(batch_size)

    def predict(
        self,
        scores: Mapping[Modality, VolumeArray],
        windows: Sequence[Window],
        target: Modality,
        background: float,
        intensity: float | None = None,
    ) -> dict[View, SliceStack]:
        """Scores of every listed slice of every window; views of one window size share batches.

        Args:
            scores: one to three normalised sequences, axes (left, posterior, superior).
            windows: one per view.
            background: fills missing sequences and what lies beyond the volume.

        Returns:
            Per view, float32 (len(window.slices), rows, columns).

        Raises:
            CaseError: not even one slice fits into memory.
        """
        return self._each_size(scores, windows, target, background, intensity, with_error=False)[0]

    def predict_with_error(
        self,
        scores: Mapping[Modality, VolumeArray],
        windows: Sequence[Window],
        target: Modality,
        background: float,
        intensity: float | None = None,
    ) -> tuple[dict[View, SliceStack], dict[View, SliceStack]]:
        """As `predict`, and the expected absolute error in scores likewise; for networks with such a head."""
        return self._each_size(scores, windows, target, background, intensity, with_error=True)

    def _each_size(
        self,
        scores: Mapping[Modality, VolumeArray],
        windows: Sequence[Window],
        target: Modality,
        background: float,
        intensity: float | None,
        with_error: bool,
    ) -> tuple[dict[View, SliceStack], dict[View, SliceStack]]:
        made: dict[View, SliceStack] = {}
        errors: dict[View, SliceStack] = {}
        for group in by_size(windows):
            images, doubts = self._run(scores, group, target, background, intensity, with_error)
            made |= images
            errors |= doubts
        return made, errors

    def _run(
        self,
        scores: Mapping[Modality, VolumeArray],
        group: list[Window],
        target: Modality,
        background: float,
        intensity: float | None,
        with_error: bool,
    ) -> tuple[dict[View, SliceStack], dict[View, SliceStack]]:
        """As `predict_with_error`, of windows of one size; without errors where those are not wanted."""
        members, index = members_of(scores), MODALITIES.index(target)
        out, errors = ({w.view: np.empty((len(w.slices), *w.size), dtype=np.float32) for w in ws}
                       for ws in (group, group if with_error else ()))  # fmt: skip
        stacks = {w.view: {m: crop(v, w, background) for m, v in scores.items()} for w in group}
        jobs = [(w.view, i) for w in group for i in range(len(w.slices))]

        def step(first: int, end: int) -> None:
            chunk = jobs[first:end]
            images = np.full((len(chunk), len(MODALITIES), *group[0].size), background, dtype=np.float32)
            for row, (view, place) in enumerate(chunk):
                for member in members:
                    images[row, member] = stacks[view][MODALITIES[member]][place]
            views = np.array([VIEWS.index(view) for view, _ in chunk], dtype=np.int64)
            if not with_error:
                _spread(self.backend.predict(images, members, index, views, intensity), chunk, out)
                return
            made, doubts = self.backend.predict_with_error(images, members, index, views, intensity)
            _spread(made, chunk, out)
            _spread(doubts, chunk, errors)

        self.batches.each(len(jobs), step)
        return out, errors


def _spread(images: NDArray[np.float32], places: list[tuple[View, int]], out: dict[View, SliceStack]) -> None:
    """Puts a batch's slices where they belong."""
    for (view, index), image in zip(places, images, strict=True):
        out[view][index] = image


def members_of(present: Iterable[Modality]) -> tuple[int, ...]:
    """Indices of the sequences that are present, in challenge order."""
    there = set(present)
    return tuple(i for i, m in enumerate(MODALITIES) if m in there)


def by_size(windows: Sequence[Window]) -> Iterator[list[Window]]:
    """Groups of views that can share a batch."""
    for size in dict.fromkeys(w.size for w in windows):
        yield [w for w in windows if w.size == size]
