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
#: Spread of the codes before training.
_CODE_STD: Final = 0.1
_Kernel: TypeAlias = tuple[int, int, int]


class ConvPair25d(nn.Sequential):
    """Two convolutions with instance norm and leaky ReLU, 3 x 3 x 1 or 3 x 3 x 3."""

    def __init__(self, in_channels: int, out_channels: int, flat: bool) -> None:
        super().__init__(*_unit(in_channels, out_channels, flat), *_unit(out_channels, out_channels, flat))


class Encoder25d(nn.Module):
    """From the image down to the coarsest level.

    With more than one case, what is missing is told at each level by a learned number per channel (ours; the paper has
    a network per case). A constant channel would not tell it: instance norm takes it away.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], cases: int = 1) -> None:
        super().__init__()
        inputs = (channels, *widths[:-1])
        self.levels = nn.ModuleList(
            [ConvPair25d(a, b, _is_flat(level)) for level, (a, b) in enumerate(zip(inputs, widths, strict=True))]
        )
        self.pools = nn.ModuleList([nn.MaxPool3d(_stride(level)) for level in range(len(widths) - 1)])
        codes = [nn.Embedding(cases, width) for width in widths] if cases > 1 else []
        for code in codes:
            nn.init.normal_(code.weight, std=_CODE_STD)
        self.codes = nn.ModuleList(codes)

    def forward(self, x: Tensor, case: Tensor | None = None) -> list[Tensor]:
        """Return the features of every level, finest first.

        Args:
            x: B x C x X x Y x Z, sides multiples of `factors`.
            case: int64 (B,), for networks of more than one case.
        """
        levels = [self._told(self.levels[0](x), 0, case)]
        for i, (pool, level) in enumerate(zip(self.pools, self.levels[1:], strict=True), start=1):
            levels.append(self._told(level(pool(levels[-1])), i, case))
        return levels

    def _told(self, features: Tensor, level: int, case: Tensor | None) -> Tensor:
        if not self.codes:
            return features
        code: Tensor = self.codes[level](case)
        return features + code[:, :, None, None, None].to(features.dtype)


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

    def __init__(self, channels: int, outputs: int, widths: tuple[int, ...], cases: int = 1) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder25d(channels, widths, cases), Decoder25d(widths, outputs)

    def forward(self, images: Tensor, case: Tensor | None = None) -> Tensor:
        """Return the probability of each region, B x outputs x X x Y x Z.

        Args:
            images: in [-1, 1], B x channels x X x Y x Z.
            case: as `Encoder25d` takes it.
        """
        return torch.sigmoid(self.decoder(self.encoder(images, case)).float())


class DualBranch25d(nn.Module):
    """One encoder and two decoders (figure 3): both tasks shape the features that they share."""

    def __init__(self, channels: int, outputs: tuple[int, int], widths: tuple[int, ...], cases: int = 1) -> None:
        super().__init__()
        self.encoder = Encoder25d(channels, widths, cases)
        self.first, self.second = Decoder25d(widths, outputs[0]), Decoder25d(widths, outputs[1])

    def forward(self, x: Tensor, case: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what both decoders make, float32, without activation; arguments as `Encoder25d` takes them."""
        levels = self.encoder(x.contiguous(memory_format=torch.channels_last_3d), case)
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
