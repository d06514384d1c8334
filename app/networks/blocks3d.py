"""Building blocks of 3D networks.

Everything runs channels last: a processor's bfloat16 convolutions are faster there (docs/RESULTS.md).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.networks.blocks import group_norm

LEAK: Final = 0.01


class InstanceNorm3d(nn.Module):
    """Instance normalisation with scale and shift, by the way that trains fast on a processor."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """B x C x X x Y x Z, same shape out."""
        return group_norm(x, x.shape[1], self.weight, self.bias)


class Leaky(nn.Module):
    """Apply leaky ReLU, in place where no gradient is wanted: memory limits it, not arithmetic."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out as in."""
        return F.leaky_relu(x, LEAK, inplace=not torch.is_grad_enabled())


class ConvUnit3d(nn.Sequential):
    """3 x 3 x 3 convolution, instance norm, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        convolution = nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        super().__init__(convolution, InstanceNorm3d(out_channels), Leaky())


class ConvPair3d(nn.Sequential):
    """Twice what `ConvUnit3d` does, the first time with the stride."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        first, second = ConvUnit3d(in_channels, out_channels, stride), ConvUnit3d(out_channels, out_channels)
        super().__init__(*first, *second)


class Decoder3d(nn.Module):
    """From the coarsest level up: transposed convolution, the level's skip joined, two convolutions."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.ups = nn.ModuleList([nn.ConvTranspose3d(coarse, fine, 2, stride=2) for fine, coarse in pairs])
        self.joins = nn.ModuleList([ConvPair3d(2 * fine, fine) for fine, _ in pairs])

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Return features of every level in the shape of its skip, finest first.

        The last are the coarsest skip itself.

        Args:
            levels: skips from the finest to the coarsest, B x widths[i] x X/2^i x Y/2^i x Z/2^i.
        """
        x, features = levels[-1], [levels[-1]]
        for skip, up, join in zip(levels[-2::-1], reversed(self.ups), reversed(self.joins), strict=True):
            x = join(torch.cat([up(x), skip], dim=1))
            features.append(x)
        return features[::-1]
