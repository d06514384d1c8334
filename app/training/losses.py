"""Losses on slices, averaged over brain pixels only; each takes B x 1 x H x W tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from app.metrics.official import K1, K2, SIGMA, TAPS


def brain_mean(values: Tensor, brain: Tensor) -> Tensor:
    """Mean of `values` over pixels where `brain` is 1; 0 for an empty brain."""
    return (values * brain).sum() / brain.sum().clamp(min=1)


def l1_loss(prediction: Tensor, truth: Tensor, brain: Tensor) -> Tensor:
    """Mean absolute difference inside the brain."""
    return brain_mean((prediction - truth).abs(), brain)


def ssim_loss(prediction: Tensor, truth: Tensor, brain: Tensor, scale: Tensor) -> Tensor:
    """One minus 2D SSIM (the challenge's window and constants), averaged over the brain.

    Args:
        scale: B x 2, scores that the challenge maps to 0 and 1 (zero intensity and the clip).
    """
    low, high = scale[:, 0, None, None, None], scale[:, 1, None, None, None]
    # Background is 0 in the challenge's volumes, whatever its score here.
    p, t = ((v.float() - low) / (high - low) * brain for v in (prediction, truth))
    moments = _blur(torch.cat([p, t, p * p, t * t, p * t], dim=1))
    mean_p, mean_t, square_p, square_t, product = moments.chunk(5, dim=1)
    c1, c2 = K1**2, K2**2
    upper = (2 * mean_p * mean_t + c1) * (2 * (product - mean_p * mean_t) + c2)
    variances = (square_p - mean_p**2).clamp(min=0) + (square_t - mean_t**2).clamp(min=0)
    return 1 - brain_mean(upper / ((mean_p**2 + mean_t**2 + c1) * (variances + c2)), brain)


def _blur(images: Tensor) -> Tensor:
    """Separable Gaussian over each channel, borders reflected."""
    channels = images.shape[1]
    taps = torch.arange(TAPS, dtype=images.dtype, device=images.device) - TAPS // 2
    kernel = torch.exp(-((taps / SIGMA) ** 2) / 2)
    kernel = (kernel / kernel.sum()).repeat(channels, 1, 1, 1)
    reach = TAPS // 2
    padded = F.pad(images, (reach, reach, reach, reach), mode="reflect")
    rows = F.conv2d(padded, kernel.reshape(channels, 1, TAPS, 1), groups=channels)
    return F.conv2d(rows, kernel.reshape(channels, 1, 1, TAPS), groups=channels)
