"""What a CG-SAMR is given: the lesion map with the normal brain, and the anatomical prior."""

from __future__ import annotations

import torch
from torch import Tensor

from app.networks.architectures import CgSamrConfig

#: Value of each prior outside the brain.
_OUTSIDE = {"atlas": -1.0, "subject": -1.0, "tissue": 0.0, "none": 0.0}


def label_planes(labels: Tensor, count: int) -> Tensor:
    """Spread labels to planes of 0 and 1, float32 B x count x H x W; the background has none.

    Args:
        labels: int64 B x H x W, 0 to count.
    """
    numbers = torch.arange(1, count + 1, device=labels.device).reshape(1, -1, 1, 1)
    return (labels[:, None] == numbers).float()


def network_inputs(brain: Tensor, labels: Tensor, prior: Tensor, config: CgSamrConfig) -> Tensor:
    """Join normal brain, lesion labels and prior to what a network is given, B x inputs x H x W.

    Fig. 7 of the paper shows the normal brain as one more label of the lesion map: so the outline is known.

    Args:
        brain: 1 inside, B x 1 x H x W.
        labels: int64 B x H x W; outside the brain they do not count.
        prior: B x C x H x W, in [-1, 1], of the prior `tissue` in [0, 1]; outside the brain it does not count.
    """
    inside = brain > 0
    lesions = label_planes(labels, config.labels) * inside
    normal = inside * (1 - lesions.sum(dim=1, keepdim=True))
    anatomy = torch.where(inside, prior, torch.full_like(prior, _OUTSIDE[config.prior]))
    return torch.cat([normal.to(lesions), lesions, anatomy.to(lesions)], dim=1)
