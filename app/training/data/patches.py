"""Random 3D patches from a cache, for the networks that see volumes.

As there, every random number of step k comes from a generator seeded by (seed, k, process): a resumed run draws what an
unbroken one would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.training.data.cache import CachedSubject
from app.training.data.mixing import mixed_weights
from app.training.data.sections import PatchData
from app.training.data.slices import Prefetcher

#: More volumes of a subject to cut along with its own, C x X x Y x Z on the cache's box; float.
ExtraChannels = Callable[[CachedSubject], NDArray[Any]]


@dataclass(frozen=True)
class Patches:
    """Patches of several subjects, on one device.

    Attributes:
        images: float32 B x 4 x X x Y x Z, all four real sequences, normalized.
        brain: float32 B x 1 x X x Y x Z, 1 in the brain.
        labels: int64 B x X x Y x Z, tumour classes; zeros where the subject has no segmentation.
        labelled: bool (B,), whether the subject has one.
        scale: float32 B x 4 x 2, as in `app.training.data.slices.Batch`.
        extra_channels: float32 B x C x X x Y x Z, what the sampler's `extra_channels` gave; C is 0 without.
    """

    images: Tensor
    brain: Tensor
    labels: Tensor
    labelled: Tensor
    scale: Tensor
    extra_channels: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Patches:
        """Move the patches to a device."""
        return replace(self, **{name: t.to(device, non_blocking=True) for name, t in vars(self).items()})

    def pieces(self, count: int) -> list[Patches]:
        """Cut the patches into at most `count` parts."""
        chunks = zip(*(t.chunk(count) for t in vars(self).values()), strict=True)
        return [Patches(*chunk) for chunk in chunks]


class PatchSampler:
    """Draw the patches of any step.

    Args:
        subjects: of a cache.
        recipe: its `patch` and `tumour_share` count: the probability that a patch is centred on a tumour voxel.
        background: fills what lies beyond the box around the brain.
        rank: number of this process; each draws other patches.
        extra_channels: more volumes to cut along, all of the same background.

    Raises:
        UsageError: there is no subject.
    """

    def __init__(
        self,
        subjects: Sequence[CachedSubject],
        recipe: PatchData,
        background: float,
        *,
        seed: int = 0,
        rank: int = 0,
        extra_channels: ExtraChannels | None = None,
    ) -> None:
        if not subjects:
            raise UsageError("there is no subject to draw patches from.")
        self._subjects, self._recipe, self._background = list(subjects), recipe, background
        self._seed, self._rank, self._extra = seed, rank, extra_channels
        self._tumours: dict[str, NDArray[np.int64]] = {}

    @property
    def count(self) -> int:
        """Patches in an epoch: as many as would cover every subject's box once."""
        volume = float(np.prod(self._recipe.patch))
        return sum(max(1, round(float(np.prod(s.brain.shape)) / volume)) for s in self._subjects)

    def own(self, step: int) -> np.random.Generator:
        """Give the random numbers of this process at a step."""
        return np.random.default_rng([self._seed, step, 1 + self._rank])

    def draw(self, random: np.random.Generator, size: int) -> Patches:
        """Draw `size` patches of random subjects."""
        rows = [self._patch(random) for _ in range(size)]
        images, brain, labels, labelled, scale, extra_channels = (np.stack(part) for part in zip(*rows, strict=True))
        return Patches(
            torch.from_numpy(images),
            torch.from_numpy(brain),
            torch.from_numpy(labels[:, 0].astype(np.int64)),
            torch.from_numpy(labelled),
            torch.from_numpy(scale),
            torch.from_numpy(extra_channels),
        )

    def _patch(self, random: np.random.Generator) -> tuple[NDArray[Any], ...]:
        subject = self._subjects[self._choose(random)]
        # Drawn in any case, so that a subject without tumour leaves the later numbers as they are.
        among_tumour, at = random.random() < self._recipe.tumour_share, random.random(4)
        shape, patch = subject.brain.shape, self._recipe.patch
        tumour = self._tumour(subject) if among_tumour else np.empty(0, np.int64)
        if tumour.size:
            centre = np.unravel_index(int(tumour[int(at[3] * tumour.size)]), shape)
            start = [int(c) - length // 2 for c, length in zip(centre, patch, strict=True)]
        else:
            start = [int(a * (extent - length + 1)) for a, extent, length in zip(at, shape, patch, strict=False)]
        # Inside the box where it is large enough, else centred on it.
        start = [
            min(max(s, 0), extent - length) if extent >= length else (extent - length) // 2
            for s, extent, length in zip(start, shape, patch, strict=True)
        ]
        labels = np.zeros(shape, np.uint8) if subject.labels is None else subject.labels
        pairs = [subject.intensities[m] for m in MODALITIES]
        more = self._extra(subject) if self._extra is not None else np.empty((0, *shape), np.float16)
        return (
            self._cut(subject.normalized, start, self._background).astype(np.float32),
            self._cut(subject.brain[None], start, 0).astype(np.float32),
            self._cut(labels[None], start, 0),
            np.array(subject.labelled),
            np.array([[(end - i.mean) / i.std for end in (0.0, i.clip)] for i in pairs], dtype=np.float32),
            self._cut(more, start, self._background).astype(np.float32),
        )

    def _choose(self, random: np.random.Generator) -> int:
        """Draw the number of a subject: all alike, or simulated ones by their share."""
        count, simulated = len(self._subjects), [s.simulated for s in self._subjects]
        if not any(simulated):
            return int(random.integers(count))
        weights = mixed_weights(np.full(count, 1 / count), simulated, self._recipe.simulated_share)
        return int(random.choice(count, p=weights))

    def _tumour(self, subject: CachedSubject) -> NDArray[np.int64]:
        """Flat indices of the tumour's voxels."""
        if subject.name not in self._tumours:
            labels = subject.labels
            self._tumours[subject.name] = np.empty(0, np.int64) if labels is None else np.flatnonzero(labels)
        return self._tumours[subject.name]

    def _cut(self, volumes: NDArray[Any], start: Sequence[int], fill: float) -> NDArray[Any]:
        out = np.full((len(volumes), *self._recipe.patch), fill, dtype=volumes.dtype)
        source, target = [], []
        for first, length, extent in zip(start, self._recipe.patch, volumes.shape[1:], strict=True):
            low, high = max(first, 0), min(first + length, extent)
            source.append(slice(low, high))
            target.append(slice(low - first, high - first))
        out[(slice(None), *target)] = volumes[(slice(None), *source)]
        return out


class PatchSource:
    """Patches of one size from a sampler.

    Args:
        prefetch: as `ahead` of `app.training.data.slices.Prefetcher`.
    """

    def __init__(self, sampler: PatchSampler, size: int, prefetch: bool = False) -> None:
        self.sampler, self._size = sampler, size
        self._samples = Prefetcher(self._draw, prefetch)

    def at(self, step: int) -> tuple[Patches, np.random.Generator]:
        """Give the patches of a step, and its random generator where drawing left it."""
        return self._samples.at(step)

    def _draw(self, step: int) -> tuple[Patches, np.random.Generator]:
        random = self.sampler.own(step)
        return self.sampler.draw(random, self._size), random
