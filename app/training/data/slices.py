"""Random batches from a cache: one view per batch, slices of many subjects.

Every random number of step k comes from generators seeded by (seed, k) and (seed, k, process). Nothing is carried from
step to step: a resumed run draws what an unbroken one would, and the step's number is the position in the data.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.core.constants import MODALITIES, TUMOUR_TYPES, VIEWS, View
from app.core.errors import UsageError
from app.preprocessing.normalization import BACKGROUND, Intensity
from app.preprocessing.slices import SLICE_AXIS, neighbour_offsets
from app.training.data.cache import CachedSubject, slice_of
from app.training.data.mixing import mixed_weights
from app.training.data.sections import SliceData

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Quantiles are taken of one voxel in so many along each axis.
_EVERY = 3


@dataclass(frozen=True)
class Batch:
    """Slices of one view, on one device.

    Attributes:
        images: float32 B x 4 x H x W, all four real sequences, normalized.
        brain: float32 B x 1 x H x W, 1 in the brain.
        labels: int64 B x H x W, tumour classes; zeros where the subject has no segmentation.
        labelled: bool (B,), whether the subject has one.
        scale: float32 B x 4 x 2: per sequence the normalized values of zero intensity and of the clip, the range of
            the challenge's metrics.
        types: int64 (B,), index in `TUMOUR_TYPES` or -1.
        subjects: int64 (B,), index among the subjects that the sampler draws from.
        quantiles: float32 B x 4 x Q, normalized values of each sequence over the whole brain, from the lowest to the
            highest, each for an equal share of its voxels; Q is 0 where the sampler was not asked for them.
        view: index in `VIEWS`.
    """

    images: Tensor
    brain: Tensor
    labels: Tensor
    labelled: Tensor
    scale: Tensor
    types: Tensor
    subjects: Tensor
    quantiles: Tensor
    view: int

    def __len__(self) -> int:
        return len(self.images)

    @property
    def views(self) -> Tensor:
        """(B,) the view of each slice."""
        return torch.full((len(self),), self.view, device=self.images.device)

    def to(self, device: torch.device) -> Batch:
        """Move the batch to a device."""
        return self._of([t.to(device, non_blocking=True) for t in self._tensors()])

    def pieces(self, count: int, group: int = 1) -> list[Batch]:
        """Cut the batch into at most `count` parts; slices of a group, which follow each other, stay together."""
        chunks = zip(*(_grouped(t, group).chunk(count) for t in self._tensors()), strict=True)
        return [self._of([t.flatten(0, 1) for t in chunk]) for chunk in chunks]

    def every(self, count: int, kept: int = 1) -> Batch:
        """Give the first `kept` of every `count` slices."""
        return self._of([_grouped(t, count)[:, :kept].flatten(0, 1) for t in self._tensors()])

    def cut(self, rows: slice, columns: slice) -> Batch:
        """Give a part of each slice."""
        return replace(
            self,
            images=self.images[:, :, rows, columns],
            brain=self.brain[:, :, rows, columns],
            labels=self.labels[:, rows, columns],
        )

    def _of(self, tensors: Sequence[Tensor]) -> Batch:
        images, brain, labels, labelled, scale, types, subjects, quantiles = tensors
        return Batch(images, brain, labels, labelled, scale, types, subjects, quantiles, self.view)

    def _tensors(self) -> tuple[Tensor, ...]:
        return (self.images, self.brain, self.labels, self.labelled, self.scale, self.types, self.subjects,
                self.quantiles)  # fmt: skip


@dataclass(frozen=True)
class SampledStep:
    """A batch on the processor, and its step's random generators where drawing left them.

    Attributes:
        plan, own: random numbers that all processes share, and those of this one.
    """

    batch: Batch
    plan: np.random.Generator
    own: np.random.Generator


class Sampler:
    """Draw the batch of any step.

    Where `data.tumour_share` is 1, a subject is not drawn in views in which none of its slices shows enough tumour.

    Args:
        rank: number of this process; each draws other slices of the same view.
        neighbours: slices on each side that come with each slice: in a batch, they follow it in the order of
            `app.preprocessing.slices.neighbour_offsets`.
        quantiles: how many quantiles of each sequence come with a slice.
        alike: whether the slices of a batch lie at a similar height of their brains.

    Raises:
        UsageError: no subject has a slice with enough brain, or with enough tumour where all must show it.
    """

    def __init__(
        self,
        subjects: Sequence[CachedSubject],
        recipe: SliceData,
        background: float,
        *,
        seed: int = 0,
        rank: int = 0,
        neighbours: int = 0,
        quantiles: int = 0,
        alike: bool = False,
    ) -> None:
        self._recipe, self._background, self._seed, self._rank = recipe, background, seed, rank
        self._alike = alike
        self._offsets = neighbour_offsets(neighbours)
        self._quantiles = {s.name: _quantiles_of(s, quantiles) for s in subjects}
        self._numbers = {s.name: number for number, s in enumerate(subjects)}
        self._slices: dict[View, list[tuple[CachedSubject, NDArray[np.int64], NDArray[np.int64]]]] = {}
        for view in recipe.views:
            rows, columns = recipe.canvas.sizes[view]
            enough = max(1, round(recipe.min_tumour_share * rows * columns))
            choices = [
                (s, s.slices(view, recipe.min_brain_pixels), s.slices(view, recipe.min_brain_pixels, enough))
                for s in subjects
            ]
            always = recipe.tumour_share == 1
            rows_of = [(s, whole, ill) for s, whole, ill in choices if (ill if always else whole).size]
            if not rows_of:
                ill_too = f" and {enough} tumour pixels" if always else ""
                raise UsageError(f"no subject has a slice ({view}) of {recipe.min_brain_pixels} brain pixels{ill_too}.")
            if always and rank == 0:
                kept = {s.name for s, _, _ in rows_of}
                for left_out in (s.name for s in subjects if s.name not in kept):
                    log.warning("%s is left out of the %s slices: none shows %d tumour pixels.", left_out, view, enough)
            self._slices[view] = rows_of
        self._weights = {view: _weights([s for s, _, _ in rows], recipe) for view, rows in self._slices.items()}

    @property
    def count(self) -> int:
        """Slices of all views that can be drawn: what one epoch shows."""
        return sum(whole.size for rows in self._slices.values() for _, whole, _ in rows)

    def plan(self, step: int) -> np.random.Generator:
        """Give the random numbers that all processes share at a step."""
        return np.random.default_rng([self._seed, step])

    def own(self, step: int) -> np.random.Generator:
        """Give the random numbers of this process at a step."""
        return np.random.default_rng([self._seed, step, 1 + self._rank])

    def at(self, step: int, size: int, max_shift: int) -> SampledStep:
        """Draw the batch of a step, with its random generators for what follows."""
        plan, own = self.plan(step), self.own(step)
        return SampledStep(self.draw(plan, own, size, max_shift), plan, own)

    def draw(self, plan: np.random.Generator, own: np.random.Generator, size: int, max_shift: int = 0) -> Batch:
        """Draw `size` slices of a random view, each moved by up to `max_shift` pixels."""
        views = self._recipe.views
        view = views[int(plan.integers(len(views)))]
        height = own.random() if self._alike else None
        rows = [row for _ in range(size) for row in self._slices_of_one(view, own, max_shift, height)]
        images, brain, labels, labelled, scale, types, numbers, quantiles = (
            np.stack(part) for part in zip(*rows, strict=True)
        )
        return Batch(
            torch.from_numpy(images),
            torch.from_numpy(brain),
            torch.from_numpy(labels[:, 0].astype(np.int64)),
            torch.from_numpy(labelled),
            torch.from_numpy(scale),
            torch.from_numpy(types),
            torch.from_numpy(numbers),
            torch.from_numpy(quantiles),
            VIEWS.index(view),
        )

    def choose(self, view: View, own: np.random.Generator) -> tuple[CachedSubject, int]:
        """Draw a subject and the index of one of its slices."""
        return self._choose(view, own, None)

    def _choose(self, view: View, own: np.random.Generator, height: float | None) -> tuple[CachedSubject, int]:
        """Draw one at a height of the brain, from 0 for its first slice to 1 for its last, or at any."""
        rows = self._slices[view]
        subject, whole, ill = rows[int(own.choice(len(rows), p=self._weights[view]))]
        if height is not None:
            whole = _near(whole, height)
            ill = np.intersect1d(ill, whole)
        # Drawn in any case, so that a subject without tumour leaves the later numbers as they are.
        among_ill = own.random() < self._recipe.tumour_share
        return subject, int(own.choice(ill if among_ill and ill.size else whole))

    def _slices_of_one(
        self, view: View, own: np.random.Generator, max_shift: int, height: float | None
    ) -> list[tuple[NDArray[np.generic], ...]]:
        """A slice and its neighbours, moved alike."""
        subject, index = self.choose(view, own) if height is None else self._choose(view, own, height)
        shift = own.integers(-max_shift, max_shift + 1, 2)
        return [self._slice(subject, view, index + offset, shift) for offset in self._offsets]

    def _slice(
        self, subject: CachedSubject, view: View, index: int, shift: NDArray[np.int64]
    ) -> tuple[NDArray[np.generic], ...]:
        if not 0 <= index < subject.brain.shape[SLICE_AXIS[view]]:
            return self._beyond(subject, view)
        images = self._images(subject, view, index)
        brain = slice_of(subject.brain, view, index)[None].astype(np.float32)
        labels = (
            np.zeros(brain.shape[1:], np.uint8) if subject.labels is None else slice_of(subject.labels, view, index)
        )
        scale = np.array([_ends(subject.intensities.get(m)) for m in MODALITIES], dtype=np.float32)
        kind = TUMOUR_TYPES.index(subject.tumour_type) if subject.tumour_type in TUMOUR_TYPES else -1
        corner = shift + self._corner(subject, view, brain.shape[1:])
        return (
            self._place(images, view, corner, self._background),
            self._place(brain, view, corner, 0.0),
            self._place(labels[None], view, corner, 0),
            np.array(subject.labelled),
            scale,
            np.array(kind),
            np.array(self._numbers[subject.name]),
            self._quantiles[subject.name],
        )

    def _beyond(self, subject: CachedSubject, view: View) -> tuple[NDArray[np.generic], ...]:
        """What lies beyond the box of the brain: a slice of background."""
        images, brain, labels, *rest = self._slice(subject, view, 0, np.zeros(2, np.int64))
        return np.full_like(images, self._background), np.zeros_like(brain), np.zeros_like(labels), *rest

    def _images(self, subject: CachedSubject, view: View, index: int) -> NDArray[np.float32]:
        """All channels of a slice, channel x row x column, on the box of the brain."""
        return slice_of(subject.normalized, view, index).astype(np.float32)

    def _corner(self, subject: CachedSubject, view: View, extent: tuple[int, ...]) -> NDArray[np.int64]:
        """Where a slice of the brain's box begins on the canvas, row and column."""
        size = self._recipe.canvas.sizes[view]
        if self._recipe.centre == "brain":
            return np.array([(length - e) // 2 for length, e in zip(size, extent, strict=True)])
        if subject.start is None or subject.shape is None:
            raise UsageError(
                f"the cache {subject.folder} of an older version does not say where brains lie, which data.centre = "
                "'volume' needs; delete it, or give another --cache."
            )
        axes = [axis for axis in range(3) if axis != SLICE_AXIS[view]]
        shape, start = subject.shape, subject.start
        return np.array([(length - shape[a]) // 2 + start[a] for length, a in zip(size, axes, strict=True)])

    def _place(
        self, channels: NDArray[np.generic], view: View, corner: NDArray[np.int64], background: float
    ) -> NDArray[np.generic]:
        """Puts a slice (channel, row, column) on the view's canvas from `corner` on; what does not fit is cut."""
        size = self._recipe.canvas.sizes[view]
        out = np.full((len(channels), *size), background, dtype=channels.dtype)
        source, target = [], []
        for extent, length, start in zip(channels.shape[1:], size, corner.tolist(), strict=True):
            low, high = max(start, 0), min(start + extent, length)
            target.append(slice(low, high))
            source.append(slice(low - start, high - start))
        out[:, target[0], target[1]] = channels[:, source[0], source[1]]
        return out


class Prefetcher(Generic[T]):
    """Give the sample of each step, drawn ahead by a thread if asked for."""

    def __init__(self, draw: Callable[[int], T], ahead: bool) -> None:
        self._draw = draw
        self._pool = ThreadPoolExecutor(1) if ahead else None
        self._next: tuple[int, Future[T]] | None = None

    def at(self, step: int) -> T:
        """Give a step's sample: the same with and without `ahead`."""
        if self._pool is None:
            return self._draw(step)
        begun = self._next
        sample = begun[1].result() if begun is not None and begun[0] == step else self._draw(step)
        self._next = step + 1, self._pool.submit(self._draw, step + 1)
        return sample


class Source:
    """Batches of one size from a sampler.

    Args:
        prefetch: as `ahead` of `Prefetcher`.
    """

    def __init__(self, sampler: Sampler, size: int, max_shift: int, prefetch: bool = False) -> None:
        self.sampler = sampler
        self._samples = Prefetcher(lambda step: sampler.at(step, size, max_shift), prefetch)

    def at(self, step: int) -> SampledStep:
        """Give the batch of a step."""
        return self._samples.at(step)


def _quantiles_of(subject: CachedSubject, count: int) -> NDArray[np.float32]:
    """Give so many quantiles of each sequence in the brain, 4 x count, from some of its voxels."""
    if count == 0:
        return np.empty((len(MODALITIES), 0), np.float32)
    part = (slice(None, None, _EVERY),) * 3
    inside = subject.normalized[(slice(None), *part)][:, subject.brain[part]].astype(np.float32)
    shares = (np.arange(count) + 0.5) / count
    return np.stack([np.quantile(values, shares) for values in inside]).astype(np.float32)


def together(images: Tensor, count: int) -> Tensor:
    """Put the sequences of every `count` slices, which follow each other, into one: B x 4 count x H x W."""
    return images.reshape(-1, count * images.shape[1], *images.shape[2:])


def _near(slices: NDArray[np.int64], height: float) -> NDArray[np.int64]:
    """Those of a brain's slices, in rising order, that lie at a height: a sixth of them, or one."""
    count = max(1, len(slices) // 6)
    first = round(height * (len(slices) - count))
    return slices[first : first + count]


def _grouped(tensor: Tensor, count: int) -> Tensor:
    """Give every `count` rows, which follow each other, an axis of their own."""
    return tensor.reshape(len(tensor) // count, count, *tensor.shape[1:])


def _ends(intensity: Intensity | None) -> tuple[float, float]:
    """Normalized values of zero intensity and of the clip; -1 and 1 of a withheld sequence."""
    if intensity is None:
        return BACKGROUND, -BACKGROUND
    return (0.0 - intensity.mean) / intensity.std, (intensity.clip - intensity.mean) / intensity.std


def _weights(subjects: Sequence[CachedSubject], recipe: SliceData) -> NDArray[np.float64]:
    """Probability of each subject, with the share of simulated ones."""
    shares = _shares([s.tumour_type for s in subjects], recipe.balance_types)
    return mixed_weights(shares, [s.simulated for s in subjects], recipe.simulated_share)


def _shares(types: list[str], balance: bool) -> NDArray[np.float64]:
    """Probability of each subject: equal, or such that every tumour type comes equally often."""
    counts = {kind: types.count(kind) for kind in types}
    weights = np.array([1.0 / counts[kind] if balance else 1.0 for kind in types])
    return np.asarray(weights / weights.sum())
