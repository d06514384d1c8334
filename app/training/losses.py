"""Losses, one function each.

Image losses take normalized images, B x 1 x H x W, and average over brain pixels only, `mae_loss` over all. `l1_loss`
and `ssim_loss` take volumes too, B x 1 x X x Y x Z.

Sources: the BraSyn 2025 entry ("No More Slice Wars") and the thesis behind it (SSIM per tissue: Appendix A); HF-GAN
(adversarial, classification, feature, cycle); Abraham and Khan, ISBI 2019 (focal Tversky); CG-SAMR (confidence).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from app.preprocessing.similarity import K1, K2, SIGMA, TAPS

TverskyForm = Literal["tumour", "published"]
#: Lambda of the confidence loss, before and after the mean confidence passes `SURE` (CG-SAMR).
CONFIDENCE_WEIGHTS = (0.1, 0.03)
SURE = 0.7
#: Abraham and Khan's: misses weigh more than false alarms, hard classes more than easy ones.
TVERSKY_MISS = 0.7
TVERSKY_GAMMA = 4.0 / 3.0
#: Keeps the published Tversky index finite where a class is absent.
TVERSKY_SMOOTH = 1e-6


def brain_mean(values: Tensor, brain: Tensor) -> Tensor:
    """Average `values` over pixels where `brain` is 1; 0 for an empty brain."""
    return (values * brain).sum() / brain.sum().clamp(min=1)


def l1_loss(prediction: Tensor, truth: Tensor, brain: Tensor) -> Tensor:
    """Compute the mean absolute difference inside the brain.

    sum_i b_i |x_i - y_i| / sum_i b_i, with b_i = 1 in the brain, else 0.
    """
    return brain_mean((prediction.float() - truth).abs(), brain)


def mae_loss(prediction: Tensor, truth: Tensor) -> Tensor:
    """Compute the mean absolute difference over all pixels, background included.

    MAE(x, y) = sum_i |x_i - y_i| / N, with N all pixels of the batch: L_recon and L_cycle of the BraSyn 2025 entry.
    """
    return (prediction.float() - truth).abs().mean()


def region_loss(prediction: Tensor, truth: Tensor, brain: Tensor, region: Tensor) -> Tensor:
    """Compute the absolute difference inside a region, as its share of the brain's mean.

    Added with weight w to `l1_loss`, it lets a pixel of the region count 1 + w times.

    Args:
        region: B x 1 x H x W, 1 in the region; no pixel of it costs nothing.
    """
    return brain_mean((prediction.float() - truth).abs() * region, brain)


def confidence_loss(prediction: Tensor, truth: Tensor, brain: Tensor, expected: Tensor, weight: float) -> Tensor:
    """Average c * |error| - weight * log(c) in the brain, with c = weight / expected.

    CG-SAMR's confidence loss, least at c = weight / |error|, which is to say at expected = |error|. With a weight of 1
    it is the negative log-likelihood of a Laplace distribution (less log 2); see `app.networks.confidence`.

    Args:
        expected: float32 B x 1 x H x W, the absolute error that the network's head expects.
        weight: lambda.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        confidence = weight / expected
        error = (prediction.float() - truth.float()).abs()
        return brain_mean(confidence * error - weight * confidence.log(), brain)


def ssim_loss(prediction: Tensor, truth: Tensor, brain: Tensor, scale: Tensor, tumour: Tensor | None = None) -> Tensor:
    """Compute one minus SSIM, averaged over the brain.

    Window and constants are the challenge's, in 2D for slices and in 3D for volumes.

    Args:
        scale: B x 2, normalized values that the challenge maps to 0 and 1 (zero intensity and the clip).
        tumour: B x 1 x H x W, 1 in the tumour. If given, healthy brain and tumour count as equal halves; without a
            tumour pixel in the batch, all of it is healthy.
    """
    similarity = ssim_pixels(prediction, truth, brain, scale)
    if tumour is None:
        return 1 - brain_mean(similarity, brain)
    healthy, ill, share = _ssim_of_tissues(similarity, brain, tumour)
    return (1 - 0.5 * share) * healthy + 0.5 * share * ill


def dual_ssim_loss(prediction: Tensor, truth: Tensor, brain: Tensor, scale: Tensor, tumour: Tensor) -> Tensor:
    """Add one minus SSIM of the healthy brain and of the tumour, both at full weight.

    (1 - mean_healthy SSIM) + (1 - mean_tumour SSIM): L_SSIM_dual of the BraSyn 2025 entry. Without a tumour pixel in
    the batch, the second term is left out. Arguments as `ssim_loss`.
    """
    healthy, ill, share = _ssim_of_tissues(ssim_pixels(prediction, truth, brain, scale), brain, tumour)
    return healthy + share * ill


def _ssim_of_tissues(similarity: Tensor, brain: Tensor, tumour: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One minus SSIM of the healthy brain and of the tumour, and 1 if there is a tumour pixel, else 0."""
    ill = brain * tumour
    healthy = 1 - brain_mean(similarity, brain - ill)
    return healthy, 1 - brain_mean(similarity, ill), (ill.sum() > 0).to(healthy)


def ssim_pixels(prediction: Tensor, truth: Tensor, brain: Tensor, scale: Tensor) -> Tensor:
    """Compute SSIM of every pixel or voxel in float32; arguments as `ssim_loss`."""
    # The variances are small differences of large numbers, which bfloat16 cannot hold.
    with torch.autocast(prediction.device.type, enabled=False):
        return _ssim_pixels(prediction.float(), truth.float(), brain, scale)


def _ssim_pixels(prediction: Tensor, truth: Tensor, brain: Tensor, scale: Tensor) -> Tensor:
    low, high = (end.reshape(-1, *[1] * (prediction.dim() - 1)) for end in scale.unbind(dim=1))
    # Background is 0 in the challenge's volumes, whatever its score here.
    p, t = ((v - low) / (high - low) * brain for v in (prediction, truth))
    moments = _blur(torch.cat([p, t, p * p, t * t, p * t], dim=1))
    mean_p, mean_t, square_p, square_t, product = moments.chunk(5, dim=1)
    c1, c2 = K1**2, K2**2
    upper = (2 * mean_p * mean_t + c1) * (2 * (product - mean_p * mean_t) + c2)
    variances = (square_p - mean_p**2).clamp(min=0) + (square_t - mean_t**2).clamp(min=0)
    return upper / ((mean_p**2 + mean_t**2 + c1) * (variances + c2))


def adversarial_loss(patches: Tensor, real: bool) -> Tensor:
    """Compute the cross-entropy of the discriminator's logits against all real or all synthetic.

    Args:
        patches: logits of any shape.
    """
    return F.binary_cross_entropy_with_logits(patches.float(), torch.full_like(patches, float(real)).float())


def classification_loss(classes: Tensor, sequences: Tensor) -> Tensor:
    """Compute the cross-entropy of the discriminator's sequence head.

    Args:
        classes: B x 4 logits.
        sequences: int64 (B,), index of the sequence that each image shows.
    """
    return F.cross_entropy(classes.float(), sequences)


def feature_loss(first: Tensor, second: Tensor) -> Tensor:
    """Compute one minus the cosine between two bottlenecks along their channels.

    The bottlenecks are B x C x h x w; the positions are averaged.
    """
    return 1 - F.cosine_similarity(first.float(), second.float(), dim=1).mean()


def focal_tversky_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Average (1 - TI_c) ** (1 / gamma) over the tumour classes.

    TI_c = (TP + 1) / (TP + 0.7 FN + 0.3 FP + 1) over the batch, gamma = 4/3: equation 4 of Abraham and Khan (2019),
    averaged, without the background.

    Args:
        logits: B x 4 x H x W.
        labels: int64 B x H x W. A class that no pixel of the batch shows costs what its false alarms do.
    """
    shares = logits.float().softmax(dim=1)[:, 1:]
    truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1)[:, 1:].to(shares)
    hit = (shares * truth).sum(dim=(0, 2, 3))
    missed, false = truth.sum(dim=(0, 2, 3)) - hit, shares.sum(dim=(0, 2, 3)) - hit
    # One pixel of slack keeps the slope finite where the index is 1 or a class is absent.
    index = (hit + 1) / (hit + TVERSKY_MISS * missed + (1 - TVERSKY_MISS) * false + 1)
    cost: Tensor = ((1 - index).clamp(min=1e-6) ** (1 / TVERSKY_GAMMA)).mean()
    return cost


def published_focal_tversky_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Add (1 - TI_c) ** gamma over all four classes, background included.

    FTL = sum_c (1 - TI_c) ** gamma, TI_c = TP / (TP + alpha FP + beta FN) over the batch: section 2.8 and algorithm 1
    of the BraSyn 2025 thesis. It states no numbers: alpha = 0.3 and beta = 0.7 are Abraham and Khan's, gamma = 4/3 is
    also that of the released script, as is the smoothing of the quotient.

    Args:
        logits: B x 4 x H x W.
        labels: int64 B x H x W. A class that no pixel of the batch shows costs 1.
    """
    shares = logits.float().softmax(dim=1)
    truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(shares)
    hit = (shares * truth).sum(dim=(0, 2, 3))
    missed, false = truth.sum(dim=(0, 2, 3)) - hit, shares.sum(dim=(0, 2, 3)) - hit
    weighed = (1 - TVERSKY_MISS) * false + TVERSKY_MISS * missed
    index = (hit + TVERSKY_SMOOTH) / (hit + weighed + TVERSKY_SMOOTH)
    cost: Tensor = ((1 - index).clamp(min=0) ** TVERSKY_GAMMA).sum()
    return cost


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute one minus the soft Dice of each tumour class over the batch, averaged.

    Args:
        logits: B x 4 x ... (any number of axes).
        labels: int64 B x ....

    Source: nnU-Net (Isensee et al., Nature Methods 2021), with the batch as one sample.
    """
    shares = logits.float().softmax(dim=1)[:, 1:]
    truth = F.one_hot(labels, logits.shape[1]).movedim(-1, 1)[:, 1:].to(shares)
    axes = [0, *range(2, logits.dim())]
    hit, both = (shares * truth).sum(dim=axes), (shares + truth).sum(dim=axes)
    # One voxel of slack: a class that is not there costs what its false alarms do.
    cost: Tensor = 1 - ((2 * hit + 1) / (both + 1)).mean()
    return cost


def _blur(images: Tensor) -> Tensor:
    """Separable Gaussian over each channel of slices or volumes, borders reflected."""
    taps = torch.arange(TAPS, dtype=images.dtype, device=images.device) - TAPS // 2
    kernel = torch.exp(-((taps / SIGMA) ** 2) / 2)
    kernel /= kernel.sum()
    return _blur_slices(images, kernel) if images.dim() == 4 else _blur_volumes(images, kernel)


def _blur_slices(images: Tensor, kernel: Tensor) -> Tensor:
    channels, reach = images.shape[1], TAPS // 2
    kernel = kernel.repeat(channels, 1, 1, 1)
    padded = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    rows = F.conv2d(padded, kernel.reshape(channels, 1, TAPS, 1), groups=channels)
    return F.conv2d(rows, kernel.reshape(channels, 1, 1, TAPS), groups=channels)


def _blur_volumes(volumes: Tensor, kernel: Tensor) -> Tensor:
    """Axis by axis as a product with a band matrix: on a processor far faster than a convolution of one channel."""
    for axis in range(2, 5):
        # What a blur with reflected borders does to each unit vector is the matrix of that blur.
        unit = torch.eye(volumes.shape[axis], dtype=volumes.dtype, device=volumes.device)[:, None]
        padded = F.pad(unit, (TAPS // 2, TAPS // 2), mode="reflect")
        matrix = F.conv1d(padded, kernel[None, None])[:, 0]
        volumes = torch.tensordot(volumes, matrix, dims=([axis], [0])).movedim(-1, axis)
    return volumes


#: Focal Tversky by the name that recipes give it.
TVERSKY_LOSSES: Final[dict[TverskyForm, Callable[[Tensor, Tensor], Tensor]]] = {
    "tumour": focal_tversky_loss,
    "published": published_focal_tversky_loss,
}
