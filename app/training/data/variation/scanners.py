"""Show exams as other scanners and other years would have them: inputs and target alike.

`vary_intensities` changes the inputs alone: a network learns to bear it, and goes on making what the training set's
scanners make. Here the target changes with them, so that the network learns how the sequences belong together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from app.core.constants import MODALITIES
from app.training.data.drawn_alike import Random
from app.training.data.slices import Batch

#: Quantiles of a sequence that tell its mean and deviation well enough.
QUANTILES: Final = 64
#: Segments of a curve between an intensity of 0 and the clip.
_SEGMENTS: Final = 6
#: Sequences of one kind, whose curves are mostly the same: a scanner weighs T1 in one way, and T2 in another.
_KINDS: Final = {"t1c": 0, "t1n": 0, "t2f": 1, "t2w": 1}
#: How much of a curve its kind decides, and the sequence alone; together as if drawn once.
_SHARED, _OWN = 0.8, 0.6
#: How much of the sharpness is an exam's; the rest is each sequence's own.
_OF_EXAM: Final = 0.8
#: Deviations, in pixels, of the blur beyond which detail is fine.
_FINEST, _COARSEST = 0.6, 1.6
#: Pixels on each side that such a blur reaches.
_REACH: Final = 4
#: The lowest share of the range that an exam may be clipped at, of reach 1.
_LOWEST_CLIP: Final = 0.6


def change_scanners(batch: Batch, reach: float, random: Random, background: float) -> Batch:
    """Bend the intensities of each exam by curves, clip them elsewhere, and normalise them anew.

    A curve rises from an intensity of 0 to the clip, in segments whose slopes are drawn. What it does to a volume's
    mean and deviation is known from `batch.quantiles`; the result has the mean and deviation that a volume of such a
    scanner would have after normalisation. Background stays.

    Args:
        reach: deviation of a slope's logarithm at most; each exam has its own, from 0 on.
    """
    count, sequences = len(batch), len(MODALITIES)
    strength = random.random((count, 1, 1)) * reach
    kinds = random.uniform(-1, 1, (count, 2, _SEGMENTS))
    own = random.uniform(-1, 1, (count, sequences, _SEGMENTS))
    # Uniform from -1 to 1 has a deviation of 1 / sqrt(3).
    logs = np.sqrt(3) * strength * (_SHARED * kinds[:, [_KINDS[m] for m in MODALITIES]] + _OWN * own)
    slopes = np.exp(logs)
    knots = np.concatenate([np.zeros((count, sequences, 1)), slopes.cumsum(axis=2)], axis=2)
    knots /= knots[:, :, -1:]
    # All sequences of an exam are clipped by one convention.
    clip = 1 - (1 - _LOWEST_CLIP) * min(reach, 1.0) * random.random((count, 1, 1)) ** 2
    curves = _Curves(batch.scale, *(torch.from_numpy(v.astype(np.float32)).to(batch.images) for v in (knots, clip)))
    bent = curves.of(batch.quantiles)
    mean, spread = bent.mean(dim=2, keepdim=True), bent.std(dim=2, keepdim=True, correction=0).clamp(min=1e-3)
    images = (curves.of(batch.images.flatten(2)) - mean) / spread
    inside = (batch.brain > 0) & (batch.images != background)
    return replace(
        batch,
        images=torch.where(inside, images.reshape(batch.images.shape), batch.images),
        scale=(batch.scale - mean) / spread,
        quantiles=(bent - mean) / spread,
    )


def change_sharpness(batch: Batch, reach: float, random: Random, background: float) -> Batch:
    """Make the fine detail of each exam stronger or weaker, as finer or coarser scans would have it.

    Fine is what a blur takes away, of a width that is drawn. Background stays, and no value leaves its volume's range.

    Args:
        reach: largest absolute logarithm of the factor on fine detail; most of it is shared by an exam's sequences.
    """
    count, sequences = len(batch), len(MODALITIES)
    drawn = _OF_EXAM * random.uniform(-1, 1, (count, 1)) + (1 - _OF_EXAM) * random.uniform(-1, 1, (count, sequences))
    factors = torch.from_numpy(np.exp(reach * drawn).astype(np.float32)).to(batch.images)[..., None, None]
    inside = (batch.brain > 0) & (batch.images != background)
    weight = inside.to(batch.images)
    both = torch.cat([batch.images * weight, weight], dim=1)
    blurred = _blurred(both, random.uniform(_FINEST, _COARSEST, count))
    # Of the brain alone, so that its rim does not count as detail.
    smooth = blurred[:, :sequences] / blurred[:, sequences:].clamp(min=1e-3)
    low, high = batch.scale[..., :1, None], batch.scale[..., 1:, None]
    images = torch.maximum(torch.minimum(smooth + factors * (batch.images - smooth), high), low)
    return replace(batch, images=torch.where(inside, images, batch.images))


def _blurred(images: Tensor, deviations: np.ndarray) -> Tensor:
    """Blur each slice, B x C x H x W, by a Gaussian of its own deviation; beyond the edge everything is 0."""
    offsets = np.arange(-_REACH, _REACH + 1)
    taps = np.exp(-0.5 * (offsets / deviations[:, None]) ** 2)
    taps = (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)
    count, channels, rows, columns = images.shape
    kernels = torch.from_numpy(taps).to(images).repeat_interleave(channels, dim=0)
    flat = images.reshape(1, count * channels, rows, columns)
    down = F.conv2d(flat, kernels[:, None, :, None], padding=(_REACH, 0), groups=count * channels)
    across = F.conv2d(down, kernels[:, None, None, :], padding=(0, _REACH), groups=count * channels)
    return across.reshape(images.shape)


class _Curves:
    """Piecewise linear curves from the range of each image onto itself.

    Args:
        scale: B x 4 x 2, the values of an intensity of 0 and of the clip.
        knots: B x 4 x segments + 1, from 0 to 1.
        clip: B x 1 x 1, the share of the range that becomes its end.
    """

    def __init__(self, scale: Tensor, knots: Tensor, clip: Tensor) -> None:
        self._low, self._high, self._knots, self._clip = scale[..., :1], scale[..., 1:], knots, clip

    def of(self, values: Tensor) -> Tensor:
        """Bend values, B x 4 x N."""
        share = ((values - self._low) / (self._high - self._low) / self._clip).clamp(0, 1) * _SEGMENTS
        segment = share.long().clamp(max=_SEGMENTS - 1)
        start, end = self._knots.gather(2, segment), self._knots.gather(2, segment + 1)
        return self._low + (start + (share - segment) * (end - start)) * (self._high - self._low)
