"""Random batches from a cache: one view, one target and one set of inputs per batch, slices of many subjects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.constants import MODALITIES, VIEWS, View
from app.training.cache import CachedSubject, slice_of
from app.views import Canvas


@dataclass(frozen=True)
class Batch:
    """Arrays of one step.

    Attributes:
        images: float32 B x 4 x H x W scores, all four real sequences (inputs augmented).
        truth: float32 B x 1 x H x W scores of the target.
        brain: float32 B x 1 x H x W, 1 in the brain.
        scale: float32 B x 2: scores of zero intensity and of the clip, the range that the challenge scores.
        members: indices of the present sequences; target: index of the one to make; view: index of the view.
    """

    images: NDArray[np.float32]
    truth: NDArray[np.float32]
    brain: NDArray[np.float32]
    scale: NDArray[np.float32]
    members: tuple[int, ...]
    target: int
    view: int


@dataclass(frozen=True)
class Augmentation:
    """How much a slice is varied; all zero leaves it alone.

    Attributes:
        flip: probability of mirroring left and right (not in sagittal slices, which have no left).
        shift: largest translation in pixels, each way.
        contrast, brightness: largest relative and absolute change of an input's scores.
    """

    flip: float = 0.5
    shift: int = 6
    contrast: float = 0.1
    brightness: float = 0.1


class Sampler:
    """Draws batches; the same seed draws the same ones.

    Args:
        single_missing: probability that only the target lacks; else one or two more sequences do.
    """

    def __init__(
        self,
        subjects: Sequence[CachedSubject],
        canvas: Canvas,
        background: float,
        *,
        views: Sequence[View] = VIEWS,
        augmentation: Augmentation | None = None,
        single_missing: float = 0.85,
        seed: int = 0,
    ) -> None:
        self._subjects, self._canvas, self._background = subjects, canvas, background
        self._views, self._augmentation = views, augmentation or Augmentation()
        self._single_missing = single_missing
        self._random = np.random.default_rng(seed)

    def draw(self, size: int) -> Batch:
        """A batch of `size` slices."""
        random = self._random
        view = self._views[int(random.integers(len(self._views)))]
        target = int(random.integers(len(MODALITIES)))
        others = [i for i in range(len(MODALITIES)) if i != target]
        count = 3 if random.random() < self._single_missing else int(random.integers(1, 3))
        members = tuple(sorted(random.choice(others, count, replace=False).tolist()))
        rows = [self._slice(view, target) for _ in range(size)]
        images, truth, brain, scale = (np.stack(part) for part in zip(*rows, strict=True))
        return Batch(images, truth, brain, scale, members, target, VIEWS.index(view))

    def _slice(self, view: View, target: int) -> tuple[NDArray[np.float32], ...]:
        random, augment = self._random, self._augmentation
        subject = self._subjects[int(random.integers(len(self._subjects)))]
        index = int(random.choice(subject.slices[view]))
        scores = slice_of(subject.scores, view, index).astype(np.float32)
        brain = slice_of(subject.brain, view, index)
        if view != "sagittal" and random.random() < augment.flip:
            scores, brain = scores[:, ::-1], brain[::-1]
        images = self._place(scores, view, (shift := random.integers(-augment.shift, augment.shift + 1, 2)))
        mask = self._place(brain[None].astype(np.float32), view, shift, background=0.0)
        truth = images[target : target + 1].copy()
        for channel in range(len(MODALITIES)):
            gain = 1 + random.uniform(-augment.contrast, augment.contrast)
            offset = random.uniform(-augment.brightness, augment.brightness)
            inside = images[channel] != self._background
            images[channel][inside] = images[channel][inside] * gain + offset
        intensity = subject.intensities[MODALITIES[target]]
        ends = np.array([0.0, intensity.clip], dtype=np.float32)
        return images, truth, mask, (ends - np.float32(intensity.mean)) / np.float32(intensity.std)

    def _place(
        self, scores: NDArray[np.float32], view: View, shift: NDArray[np.int64], background: float | None = None
    ) -> NDArray[np.float32]:
        """Centres a slice on the view's canvas, moved by `shift`; what does not fit is cut off."""
        size = self._canvas.sizes[view]
        out = np.full((len(scores), *size), self._background if background is None else background, dtype=np.float32)
        source, target = [], []
        for extent, length, move in zip(scores.shape[1:], size, shift, strict=True):
            start = (length - extent) // 2 + int(move)
            low, high = max(start, 0), min(start + extent, length)
            target.append(slice(low, high))
            source.append(slice(low - start, high - start))
        out[:, target[0], target[1]] = scores[:, source[0], source[1]]
        return out
