"""The losses of CG-SAMR, equations 1 to 10. Sums over pixels are means, so that weights hold for every canvas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

#: Weight of the confidence's logarithm before and after its mean passes the threshold (section IV-B).
LAMBDA_FIRST: Final = 0.1
LAMBDA_LATER: Final = 0.03
CONFIDENT: Final = 0.7
#: No tissue is darker; the background is -1.
DARKEST: Final = -0.8
#: So far from the average a tissue's brightness may be.
TOLERANCE: Final = 0.1
_TINY: Final = 1e-6


def half_scale(image: Tensor) -> Tensor:
    """Halve both sides by means over 2 x 2 pixels (y at 0.5 in equation 1)."""
    return F.avg_pool2d(image, 2)


def confidence_weight(confident: bool) -> float:
    """Give lambda_cm: 0.1, and 0.03 once the mean confidence has been above 0.7."""
    return LAMBDA_LATER if confident else LAMBDA_FIRST


def confidence_loss(intermediate: Tensor, confidence: Tensor, real: Tensor, weight: float) -> Tensor:
    """Compute the mean of c |y - y'| - lambda log c (equation 1).

    Args:
        intermediate, confidence: of every sequence at half scale, B x S x h x w.
        real: the exam at half scale.
        weight: lambda.
    """
    error = (intermediate.float() - real).abs()
    return (confidence * error - weight * confidence.clamp(min=_TINY).log()).mean()


def discriminator_loss(made: Sequence[Sequence[Tensor]], real: Sequence[Sequence[Tensor]]) -> Tensor:
    """Compute what the discriminators minimise: -log D(real) - log(1 - D(made)), summed over them (equation 2).

    Args:
        made, real: layers of every discriminator; the last are logits.
    """
    losses = [F.softplus(-true[-1]).mean() + F.softplus(false[-1]).mean()
              for false, true in zip(made, real, strict=True)]  # fmt: skip
    return torch.stack(losses).sum()


def adversarial_loss(made: Sequence[Sequence[Tensor]]) -> Tensor:
    """Compute the generator's -log D(made), summed over the discriminators.

    Equation 2 has log(1 - D(made)), whose gradient vanishes where D is sure; this is the usual form without that.
    """
    return torch.stack([F.softplus(-layers[-1]).mean() for layers in made]).sum()


def feature_matching_loss(made: Sequence[Sequence[Tensor]], real: Sequence[Sequence[Tensor]]) -> Tensor:
    """Compute the mean squared difference of each layer, summed over layers and discriminators (equation 3).

    No gradient goes into what is real. The last layer, the patches' logits, is among them.
    """
    losses = [F.mse_loss(false, true.detach())
              for falses, trues in zip(made, real, strict=True)
              for false, true in zip(falses, trues, strict=True)]  # fmt: skip
    return torch.stack(losses).sum()


def generalised_dice_loss(truth: Tensor, answer: Tensor) -> Tensor:
    """Compute 1 - 2 sum(r s) / (sum(r) + sum(s)) (equation 4).

    As printed it has no weights of labels. It is computed for each label over the whole batch, and averaged over
    labels; a label that is nowhere, in truth and answer, costs nothing.

    Args:
        truth: 0 or 1, B x labels x H x W.
        answer: probabilities, same shape.
    """
    both = (truth * answer).sum(dim=(0, 2, 3))
    total = truth.sum(dim=(0, 2, 3)) + answer.sum(dim=(0, 2, 3))
    return (1 - (2 * both + _TINY) / (total + _TINY)).mean()


def shape_consistency_loss(truth: Tensor, of_real: Tensor, of_made: Tensor) -> Tensor:
    """Compute the segmentation's loss on the real and on the made exam (equation 5).

    Args:
        truth: 0 or 1, B x labels x H x W.
        of_real, of_made: probabilities of the labels.
    """
    return generalised_dice_loss(truth, of_real) + generalised_dice_loss(truth, of_made)


def darkness_loss(image: Tensor, brain: Tensor) -> Tensor:
    """Compute how far an image in [-1, 1] is darker than any tissue, a mean over the brain; not in the paper.

    Args:
        image: B x S x H x W.
        brain: 1 inside, B x 1 x H x W.
    """
    below = F.relu(DARKEST - image.float()) * brain
    return below.sum() / (brain.sum() * image.shape[1]).clamp(min=1)


def tissue_levels(images: Tensor, tissue: Tensor) -> Tensor:
    """Average the brightness of each tissue, S x T.

    Args:
        images: S x ..., a group average.
        tissue: probabilities, T x ....
    """
    weights = tissue.flatten(1).float()
    return images.flatten(1).float() @ weights.T / weights.sum(dim=1).clamp(min=_TINY)


def tissue_loss(image: Tensor, tissue: Tensor, levels: Tensor) -> Tensor:
    """Compute how far the mean brightness of tissues lies from a group average, beyond a tolerance; not in the paper.

    Args:
        image: B x S x H x W, in [-1, 1].
        tissue: probabilities in the normal brain, 0 elsewhere, B x T x H x W.
        levels: what is average, S x T (`tissue_levels`).

    Returns:
        A mean over slices, sequences and tissues; of a tissue that a slice has not, 0.
    """
    sums = torch.einsum("bshw,bthw->bst", image.float(), tissue)
    counts = tissue.sum(dim=(2, 3))[:, None]
    away = (sums / counts.clamp(min=1) - levels).abs()
    return (F.relu(away - TOLERANCE) * (counts >= 1)).mean()


def reconstruction_loss(given: Tensor, returned: Tensor) -> Tensor:
    """Compute the mean absolute difference of what comes back (equations 7 and 9)."""
    return (given - returned.float()).abs().mean()
