"""The losses of DS3-Net, equations 1 to 7. Images are in [-1, 1], B x 1 x H x W; sums over pixels are means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

#: Difficulty of the background (equation 1), and temperature of the contrast (equation 3).
BACKGROUND_DIFFICULTY: Final = 0.2
TEMPERATURE: Final = 0.07


def difficulty_map(scores: Tensor, brain: Tensor) -> Tensor:
    """Compute |1 - D(G(x))| at every pixel, 0.2 in the background (equation 1); no gradient.

    The scores of patches are brought to the pixels bilinearly; the paper does not say how.

    Args:
        scores: what the discriminator says of the made image, B x 1 x h x w.
        brain: 1 in the brain, B x 1 x H x W.
    """
    difficulty = (1 - scores.detach()).abs()
    pixels = F.interpolate(difficulty, size=brain.shape[2:], mode="bilinear", align_corners=False)
    return torch.where(brain > 0, pixels, torch.full_like(pixels, BACKGROUND_DIFFICULTY))


def pixel_loss(made: Tensor, real: Tensor, difficulty: Tensor) -> Tensor:
    """Compute the mean of M |y - G(x)| (equation 2; with the teacher's image as `real` equation 5)."""
    return (difficulty * (real - made).abs()).mean()


def resized_difficulty(difficulty: Tensor, size: Sequence[int]) -> Tensor:
    """Bring a difficulty map to a layer's resolution (m_l): the mean over each pixel's area.

    A layer that is larger than the image is the image padded by reflection, and the map is padded like it.
    """
    margin = (size[0] - difficulty.shape[2]) // 2
    if margin > 0:
        return F.pad(difficulty, (margin, margin, margin, margin), mode="reflect")
    return F.adaptive_avg_pool2d(difficulty, (size[0], size[1]))


def contrast_loss(queries: Tensor, positives: Tensor, weights: Tensor) -> Tensor:
    """Compute one layer's weighted InfoNCE (equation 3).

    Each place's vector must be like that of the same place in the made image, and unlike those of the other places.

    Args:
        queries, positives: unit vectors, B x P x C.
        weights: difficulty of each place, B x P.
    """
    likeness = queries @ positives.transpose(1, 2) / TEMPERATURE
    places = torch.arange(queries.shape[1], device=queries.device).expand(len(queries), -1)
    each = F.cross_entropy(likeness.flatten(0, 1), places.flatten(), reduction="none")
    return (weights.flatten() * each).mean()


def feature_loss(
    teacher: Mapping[int, Tensor], student: Mapping[int, Tensor], difficulty: Tensor, layers: Sequence[int]
) -> Tensor:
    """Compute the mean over layers of m_k |f_T - f_S| (equation 6); no gradient into the teacher."""
    losses = []
    for layer in layers:
        weight = resized_difficulty(difficulty, student[layer].shape[2:])
        losses.append((weight * (teacher[layer].detach() - student[layer]).abs()).mean())
    return torch.stack(losses).mean()


def fooling_loss(made: Tensor) -> Tensor:
    """Compute the generator's least-squares loss, (D(made) - 1)^2."""
    return ((made - 1) ** 2).mean()


def discriminator_loss(made: Tensor, real: Tensor) -> Tensor:
    """Compute the discriminator's least-squares loss, half of D(made)^2 + (D(real) - 1)^2."""
    return ((made**2).mean() + ((real - 1) ** 2).mean()) / 2


def student_share(progress: float) -> float:
    """Give the weight 1 - t / T of the student's loss in the second stage (section 3.2)."""
    return 1 - min(max(progress, 0.0), 1.0)
