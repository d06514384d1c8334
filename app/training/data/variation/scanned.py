"""Show slices as a clinic's exams bring them: thick slices of all sequences along one axis, a brain mask that errs.

Turning is `augmentation.rotate`; thickness of single sequences is `augmentation.thick`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from app.training.data.drawn_alike import Random
from app.training.data.slices import Batch

#: Nodes per side of the field that moves the brain's rim.
_NODES = 6
#: Axes of an acquisition; the third is the slice's own, where its thickness does not show.
_AXES = 3


def thicken_exams(batch: Batch, thickest: float, random: Random, background: float) -> Tensor:
    """Average the sequences of half of the slices along one axis, each over slices of its own thickness.

    Returns the batch's images, same shape; background stays as it is.

    Args:
        thickest: in pixels; each sequence's thickness is between 1 and that.
    """
    count, sequences = batch.images.shape[:2]
    chosen, axes = random.random(count) < 0.5, random.integers(0, _AXES, count)
    extents = random.uniform(1, thickest, (count, sequences))
    images = batch.images.clone()
    for i in np.flatnonzero(chosen & (axes < _AXES - 1)):
        for j in range(sequences):
            images[i, j] = _acquired(images[i, j], int(axes[i]), float(extents[i, j]))
    return torch.where((batch.brain > 0) & (batch.images != background), images, batch.images)


def misjudge_brain(batch: Batch, reach: float, random: Random, background: float) -> tuple[Batch, Batch]:
    """Move the brain's rim in half of the slices, as a mask that errs does.

    What the mask cuts off is lost to all. What it takes in beyond the brain is shown only: a network learns to leave
    it out.

    Args:
        reach: pixels by which the rim moves at most, each way.

    Returns:
        The batch whose brain is cut, and the same as it is shown.
    """
    moved = _rim_field(batch, reach, random)
    whole = batch.brain
    cut = (whole > 0) & (_depth(whole, reach) < -moved)
    beyond = (whole == 0) & (_depth(1 - whole, reach) < moved)
    images = torch.where(cut, torch.full_like(batch.images, background), batch.images)
    brain = torch.where(cut, torch.zeros_like(whole), whole)
    labels = torch.where(cut[:, 0], torch.zeros_like(batch.labels), batch.labels)
    kept = replace(batch, images=images, brain=brain, labels=labels)
    shown = torch.where(beyond, _tissue(batch, random), images)
    return kept, replace(kept, images=shown)


def _acquired(image: Tensor, axis: int, extent: float) -> Tensor:
    """Average an image over slices of about `extent` pixels along an axis, and resample it to its own pixels."""
    sides = list(image.shape)
    sides[axis] = max(1, round(sides[axis] / extent))
    coarse = F.interpolate(image[None, None], size=sides, mode="area")
    return F.interpolate(coarse, size=image.shape, mode="bilinear")[0, 0]


def _rim_field(batch: Batch, reach: float, random: Random) -> Tensor:
    """Draw by how many pixels the rim moves outward at each pixel, B x 1 x H x W; 0 in half of the slices."""
    count = len(batch)
    nodes = (
        random.uniform(-reach, reach, (count, 1, _NODES, _NODES)) * (random.random(count) < 0.5)[:, None, None, None]
    )
    field = torch.from_numpy(nodes.astype(np.float32)).to(batch.images.device)
    return F.interpolate(field, size=batch.images.shape[2:], mode="bilinear")


def _depth(mask: Tensor, reach: float) -> Tensor:
    """Count the pixels between each pixel of a mask and its rim, up to `reach`; what lies outside the image is mask."""
    outside = 1 - mask
    return sum(
        (1 - F.max_pool2d(outside, 2 * step + 1, 1, step) for step in range(1, int(np.ceil(reach)) + 1)),
        start=torch.zeros_like(mask),
    )


def _tissue(batch: Batch, random: Random) -> Tensor:
    """Draw what may lie beside the brain: a shade for each image between its lowest and highest value, with grain."""
    low, high = batch.scale[:, :, 0, None, None], batch.scale[:, :, 1, None, None]
    shades = random.uniform(0.05, 0.8, (*batch.images.shape[:2], 1, 1)).astype(np.float32)
    grain = random.uniform(0.8, 1.2, batch.images.shape).astype(np.float32)
    share = torch.from_numpy(shades * grain).to(batch.images)
    return low + share * (high - low)
