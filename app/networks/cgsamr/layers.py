"""Blocks of the encoders and decoders of CG-SAMR."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["batch", "instance"]
Up = Literal["transposed", "resize"]
_MOMENTUM, _EPSILON = 0.1, 1e-5


class BatchNorm(nn.Module):
    """Normalize by the batch in training and by running means in use, without a counter of batches.

    Published weights are rounded to float16, in which a counter has no place.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out as in."""
        means = self.running_mean, self.running_var
        return F.batch_norm(x, *means, self.weight, self.bias, self.training, _MOMENTUM, _EPSILON)


def new_norm(channels: int, kind: Norm) -> nn.Module:
    """Build a normalization of so many channels."""
    return BatchNorm(channels) if kind == "batch" else nn.InstanceNorm2d(channels, affine=True)


def conv_block(before: int, after: int, norm: Norm, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """Build a convolution, its normalization and a ReLU; sides are kept, or halved by a stride of 2.

    The halving kernel is 4 x 4, as the doubling one is: an even kernel leaves no checkerboard.
    """
    layers: list[nn.Module] = [nn.Conv2d(before, after, kernel, stride, (kernel - 1) // 2)]
    return nn.Sequential(*layers, new_norm(after, norm), nn.ReLU())


def up_block(before: int, after: int, norm: Norm, up: Up = "transposed") -> nn.Sequential:
    """Build what doubles both sides, its normalization and a ReLU.

    Args:
        up: see `app.networks.architectures.CgSamrConfig`.
    """
    if up == "transposed":
        doubling: list[nn.Module] = [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1)]
    else:
        rise = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        doubling = [rise, nn.Conv2d(before, after, 3, padding=1)]
    return nn.Sequential(*doubling, new_norm(after, norm), nn.ReLU())


class ResidualBlock(nn.Module):
    """Add two normalized 3 x 3 convolutions to the identity."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, 3, padding=1)
        self.layers = nn.Sequential(conv_block(channels, channels, norm), last, new_norm(channels, norm))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out as in."""
        out: Tensor = x + self.layers(x)
        return out


class Encoder(nn.Sequential):
    """Bring an input to a code: a 7 x 7 convolution, one of stride 2 per further width, three residual blocks.

    Widths double at each halving, as in pix2pixHD (Wang et al., CVPR 2018).
    """

    def __init__(self, inputs: int, widths: tuple[int, ...], norm: Norm) -> None:
        pairs = pairwise(widths)
        super().__init__(
            conv_block(inputs, widths[0], norm, kernel=7),
            *(conv_block(a, b, norm, kernel=4, stride=2) for a, b in pairs),
            *(ResidualBlock(widths[-1], norm) for _ in range(3)),
        )


class PlainDecoder(nn.Sequential):
    """Bring a code up to the input's sides by one way: three residual blocks, four doublings, a 7 x 7 convolution.

    It is F1 of UCG-SAMR, which gives probabilities of lesion labels and tissues.
    """

    def __init__(self, outputs: int, widths: tuple[int, ...], norm: Norm, up: Up = "transposed") -> None:
        ups = zip(widths[:0:-1], widths[-2::-1], strict=True)
        super().__init__(
            *(ResidualBlock(widths[-1], norm) for _ in range(3)),
            *(up_block(a, b, norm, up) for a, b in ups),
            nn.Conv2d(widths[0], outputs, 7, padding=3),
            nn.Sigmoid(),
        )
