"""The 2.5D U-Net: flat convolutions on the two finest of five levels, full ones below.

Source: the TISS-Net paper, section 3.1 and figure 3; its backbone is the 2.5D U-Net of Wang et al. (MICCAI 2019). Where
the papers are silent: two convolutions per level, instance norm and leaky ReLU as elsewhere in Tetrad, transposed
convolutions up. The third axis is the one across slices.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn

from app.networks.blocks3d import InstanceNorm3d, Leaky

#: Levels whose convolutions do not cross slices, and that are halved within slices only.
FLAT_LEVELS: Final = 2
_Kernel: TypeAlias = tuple[int, int, int]


class ConvPair25d(nn.Sequential):
    """Two convolutions with instance norm and leaky ReLU, 3 x 3 x 1 or 3 x 3 x 3."""

    def __init__(self, in_channels: int, out_channels: int, flat: bool) -> None:
        super().__init__(*_unit(in_channels, out_channels, flat), *_unit(out_channels, out_channels, flat))


class Encoder25d(nn.Module):
    """From the image down to the coarsest level."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        inputs = (channels, *widths[:-1])
        self.levels = nn.ModuleList(
            [ConvPair25d(a, b, _is_flat(level)) for level, (a, b) in enumerate(zip(inputs, widths, strict=True))]
        )
        self.pools = nn.ModuleList([nn.MaxPool3d(_stride(level)) for level in range(len(widths) - 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the features of every level, finest first.

        Args:
            x: B x C x X x Y x Z, sides multiples of `factors`.
        """
        levels = [self.levels[0](x)]
        for pool, level in zip(self.pools, self.levels[1:], strict=True):
            levels.append(level(pool(levels[-1])))
        return levels


class Decoder25d(nn.Module):
    """From the coarsest level up, with the encoder's skips, to `outputs` channels."""

    def __init__(self, widths: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        pairs = list(enumerate(pairwise(widths)))
        self.ups = nn.ModuleList(
            [nn.ConvTranspose3d(coarse, fine, _stride(i), stride=_stride(i)) for i, (fine, coarse) in pairs]
        )
        self.joins = nn.ModuleList([ConvPair25d(2 * fine, fine, _is_flat(i)) for i, (fine, _) in pairs])
        self.head = nn.Conv3d(widths[0], outputs, 1)

    def forward(self, levels: list[Tensor]) -> Tensor:
        """Return B x outputs x X x Y x Z, without activation.

        Args:
            levels: as `Encoder25d` gives them.
        """
        x = levels[-1]
        for skip, up, join in zip(levels[-2::-1], reversed(self.ups), reversed(self.joins), strict=True):
            x = join(torch.cat([up(x), skip], dim=1))
        out: Tensor = self.head(x)
        return out


class UNet25d(nn.Module):
    """One encoder and one decoder: the perceptibility network, and what TISS-Net is compared with."""

    def __init__(self, channels: int, outputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder25d(channels, widths), Decoder25d(widths, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Return the probability of each region, B x outputs x X x Y x Z.

        Args:
            images: in [-1, 1], B x channels x X x Y x Z.
        """
        return torch.sigmoid(self.decoder(self.encoder(images)).float())


class DualBranch25d(nn.Module):
    """One encoder and two decoders (figure 3): both tasks shape the features that they share."""

    def __init__(self, channels: int, outputs: tuple[int, int], widths: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = Encoder25d(channels, widths)
        self.first, self.second = Decoder25d(widths, outputs[0]), Decoder25d(widths, outputs[1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what both decoders make, float32, without activation."""
        levels = self.encoder(x.contiguous(memory_format=torch.channels_last_3d))
        return self.first(levels).float(), self.second(levels).float()


def factors(levels: int) -> tuple[int, int, int]:
    """Return the divisors of the sides that a network of so many levels takes."""
    within, across = 2 ** (levels - 1), 2 ** max(levels - 1 - FLAT_LEVELS, 0)
    return within, within, across


def _unit(in_channels: int, out_channels: int, flat: bool) -> tuple[nn.Module, ...]:
    kernel: _Kernel = (3, 3, 1) if flat else (3, 3, 3)
    padding: _Kernel = (1, 1, 0) if flat else (1, 1, 1)
    convolution = nn.Conv3d(in_channels, out_channels, kernel, padding=padding, bias=False)
    return convolution, InstanceNorm3d(out_channels), Leaky()


def _is_flat(level: int) -> bool:
    return level < FLAT_LEVELS


def _stride(level: int) -> _Kernel:
    """Give the stride from a level to the next coarser one."""
    return (2, 2, 1) if _is_flat(level) else (2, 2, 2)
