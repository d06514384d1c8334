"""The losses of TISS-Net, equations 1 to 11.

Images are in [-1, 1], B x 1 x X x Y x Z; segmentations are probabilities, B x K x X x Y x Z. Norms are means over
voxels, so that weights do not depend on the patch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from app.networks.tissnet.model import TissNetOutput

#: Keeps the overlap of two empty segmentations defined: it is 1.
_SMOOTH = 1.0
#: Keeps the cross-entropy of a plainly wrong answer, and its gradient, finite.
_LEAST = 1e-6


def overlap_loss(answer: Tensor, truth: Tensor) -> Tensor:
    """Compute the Dice loss: 1 - 2 |A T| / (|A| + |T|) of each region, their mean.

    The paper does not say how patches are put together. Here the batch is one sample: of a patch without tumour alone
    the loss has hardly a gradient, and false alarms would cost nothing.
    """
    axes = (0, 2, 3, 4)
    common = (answer * truth).sum(dim=axes)
    total = answer.sum(dim=axes) + truth.sum(dim=axes)
    return (1 - (2 * common + _SMOOTH) / (total + _SMOOTH)).mean()


def segmentation_loss(answer: Tensor, truth: Tensor, entropy: float = 0.0) -> Tensor:
    """Compute the Dice loss plus `entropy` times the mean binary cross-entropy (0 in the paper)."""
    loss = overlap_loss(answer, truth)
    if entropy == 0:
        return loss
    return loss + entropy * F.binary_cross_entropy(answer.float().clamp(_LEAST, 1 - _LEAST), truth)


def fooling_loss(made: Tensor) -> Tensor:
    """Compute (D - 1)^2 of what a discriminator says of made images (equation 2)."""
    return ((made - 1) ** 2).mean()


def discriminator_loss(made: Tensor, real: Tensor) -> Tensor:
    """Compute D(made)^2 + (D(real) - 1)^2 (equation 3; summed over both discriminators it is equation 11)."""
    return (made**2).mean() + ((real - 1) ** 2).mean()


def l1_losses(synthesis: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Compute the L1 terms of equations 1 and 4, without their alpha: `l1_global` and `l1_tumour`.

    Args:
        mask: the tumour's box, as `tumour_mask` gives it.
    """
    return {
        "l1_global": F.l1_loss(synthesis, target),
        "l1_tumour": F.l1_loss(mask * synthesis, mask * target),
    }


def tumour_mask(truth: Tensor) -> Tensor:
    """Mark the bounding box of each subject's tumour (M in equation 4); nothing where there is none.

    Args:
        truth: B x K x X x Y x Z; all regions count.

    Returns:
        B x 1 x X x Y x Z, 0 or 1.
    """
    tumour = truth.amax(dim=1, keepdim=True) > 0
    mask = torch.ones_like(tumour)
    for axis in (2, 3, 4):
        others = tuple(a for a in (2, 3, 4) if a != axis)
        seen = tumour.amax(dim=others, keepdim=True)
        first = seen.cummax(dim=axis).values
        last = seen.flip(axis).cummax(dim=axis).values.flip(axis)
        mask = mask & first & last
    return mask.to(truth.dtype)


def perceptibility_loss(answer: Tensor, truth: Tensor) -> Tensor:
    """Compute the Dice loss of what the frozen S_p finds in the made image (equation 5)."""
    return overlap_loss(answer, truth)


def error_truth(coarse: Tensor, truth: Tensor) -> Tensor:
    """Mark where the coarse segmentation, cut at a half, is wrong (y != y_c in equation 9); no gradient."""
    return ((coarse.detach() > 0.5) != (truth > 0.5)).to(truth.dtype)


def consistency_loss(fine: Tensor, refined: Tensor) -> Tensor:
    """Compute the mean square between y_f and y_r (equation 8)."""
    return F.mse_loss(fine, refined)


def segmentor_losses(output: TissNetOutput, truth: Tensor, entropy: float = 0.0) -> dict[str, Tensor]:
    """Compute the three terms of equation 9: `fine`, `error` and `consistency`; their sum is L_S.

    Args:
        entropy: as `segmentation_loss` takes it, for `fine`.
    """
    return {
        "fine": segmentation_loss(output.fine, truth, entropy),
        "error": overlap_loss(output.error, error_truth(output.coarse, truth)),
        "consistency": consistency_loss(output.fine, output.refined),
    }


def total_loss(losses: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Compute equation 10, with equations 1, 4 and 6 in it: the weighted sum of its terms.

    Args:
        losses: some of the terms.
        weights: of each that may be among them.
    """
    # What has no weight is left out, so that nothing is computed backwards for it.
    return torch.stack([weights[name] * loss for name, loss in losses.items() if weights[name] != 0]).sum()
