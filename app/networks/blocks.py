"""Build the blocks of the generator.

A grouped block holds the parameters of several parallel, independent blocks (one per sequence) side by side along the
channel axis, as in the released weights. It runs one of them at a time, with its share of the parameters (`member=i`).
A block of one member needs no number.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: GroupNorm groups per member.
NORM_GROUPS = 8
NORM_EPSILON = 1e-5
#: Channels last, by the number of axes.
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


class _ProcessorGroupNorm(torch.autograd.Function):
    """Apply GroupNorm, and compute its gradient with the channels first.

    Torch's own gradient for bfloat16 with the channels last is several times slower.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous(memory_format=_LAYOUTS[x.dim()])
        count, channels = x.shape[:2]
        # A volume as one very high slice: the fast way knows four axes only.
        flat = x.as_strided((count, channels, x[0, 0].numel(), 1), (x[0].numel(), 1, channels, channels))
        out, mean, rstd = torch.ops.aten.native_group_norm(
            flat, weight, bias, count, channels, x[0, 0].numel(), groups, NORM_EPSILON
        )
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.groups = groups
        normed: Tensor = out.as_strided(x.shape, x.stride())
        return normed

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        dx, dweight, dbias = torch.ops.aten.native_group_norm_backward(
            slopes[0].contiguous(), x.contiguous(), mean, rstd, weight,
            *x.shape[:2], x[0, 0].numel(), ctx.groups, [True, True, True],
        )  # fmt: skip
        return dx.to(memory_format=_LAYOUTS[x.dim()]), None, dweight, dbias


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply GroupNorm by the way that trains fastest on this device.

    Args:
        x: slices B x C x H x W or volumes B x C x X x Y x Z.
    """
    if x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.requires_grad:
        out: Tensor = _ProcessorGroupNorm.apply(x, groups, weight, bias)  # type: ignore[no-untyped-call]
        return out
    return F.group_norm(x, groups, weight, bias, NORM_EPSILON)


class GroupedConv2d(nn.Module):
    """Apply `members` parallel convolutions from `in_channels` to `out_channels` each.

    Parameters are stored as torch's grouped convolution stores them: weight (members * out, in, k, k).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        members: int = 1,
        stride: int = 1,
        padding: int = 0,
    ) -> None:
        super().__init__()
        template = nn.Conv2d(members * in_channels, members * out_channels, kernel_size, groups=members)
        self.weight = template.weight
        self.bias = template.bias
        self.out_channels, self.stride, self.padding = out_channels, stride, padding

    def forward(self, x: Tensor, member: int | None = None) -> Tensor:
        """Convolve B x in x H x W to B x out x H' x W'."""
        weight, bias = self.weight, self.bias
        if member is not None:
            share = slice(member * self.out_channels, (member + 1) * self.out_channels)
            weight, bias = weight[share], None if bias is None else bias[share]
        return F.conv2d(x, weight, bias, stride=self.stride, padding=self.padding)


class GroupedNorm(nn.Module):
    """GroupNorm with `NORM_GROUPS` groups for each of `members` blocks of `channels` channels."""

    def __init__(self, channels: int, *, members: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members * channels))
        self.bias = nn.Parameter(torch.zeros(members * channels))
        self.channels = channels

    def forward(self, x: Tensor, member: int | None = None) -> Tensor:
        """Same shape out as in."""
        if member is None:
            return group_norm(x, NORM_GROUPS, self.weight, self.bias)
        share = slice(member * self.channels, (member + 1) * self.channels)
        return group_norm(x, NORM_GROUPS, self.weight[share], self.bias[share])


class PreActivation(nn.Module):
    """GroupNorm, SiLU, 3 x 3 convolution."""

    def __init__(self, in_channels: int, out_channels: int, *, members: int = 1) -> None:
        super().__init__()
        self.norm = GroupedNorm(in_channels, members=members)
        self.conv = GroupedConv2d(in_channels, out_channels, 3, members=members, padding=1)

    def forward(self, x: Tensor, member: int | None = None) -> Tensor:
        out: Tensor = self.conv(F.silu(self.norm(x, member)), member)
        return out


class ResidualBlock(nn.Module):
    """Add a shortcut to a block: identity, or 1 x 1 where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, *, members: int = 1) -> None:
        super().__init__()
        self.block1 = PreActivation(in_channels, out_channels, members=members)
        self.res_conv = (
            GroupedConv2d(in_channels, out_channels, 1, members=members) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor, member: int | None = None) -> Tensor:
        shortcut = x if self.res_conv is None else self.res_conv(x, member)
        out: Tensor = self.block1(x, member) + shortcut
        return out


class Downsample(nn.Module):
    """Halve by a 3 x 3 convolution, padded below and to the right.

    Padding by two on all sides gives the same and a first row and column too many. That is cheaper than padding by
    hand, which copies the input.
    """

    def __init__(self, channels: int, *, members: int = 1) -> None:
        super().__init__()
        self.conv = GroupedConv2d(channels, channels, 3, members=members, stride=2, padding=2)

    def forward(self, x: Tensor, member: int | None = None) -> Tensor:
        """B x C x H x W, H and W even, to half of both."""
        out: Tensor = self.conv(x, member)[..., 1:, 1:]
        return out


class Upsample(nn.Module):
    """Nearest-neighbour doubling and a 3 x 3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Encoder(nn.Module):
    """Stem and five residual stages; `members` parallel encoders that share nothing but their shape."""

    def __init__(self, in_channels: int, widths: tuple[int, ...], *, members: int = 1) -> None:
        super().__init__()
        self.members = members
        self.conv_initial = GroupedConv2d(in_channels, widths[0], 3, members=members, padding=1)
        self.downs = nn.ModuleList()
        inputs = (widths[0], *widths[:-1])
        for index, (before, after) in enumerate(zip(inputs, widths, strict=True)):
            stage: list[nn.Module] = [ResidualBlock(before, after, members=members)]
            if index < len(widths) - 1:
                stage.append(Downsample(after, members=members))
            self.downs.append(nn.ModuleList(stage))

    def forward(self, x: Tensor, member: int | None = None) -> list[Tensor]:
        """Return the five stages' outputs before down-sampling, finest first, the bottleneck last.

        Args:
            x: B x in_channels x H x W.
        """
        x = self.conv_initial(x, member)
        features = []
        for stage in self.downs:
            assert isinstance(stage, nn.ModuleList)
            x = stage[0](x, member)
            features.append(x)
            if len(stage) > 1:
                x = stage[1](x, member)
        return features


class ChannelGate(nn.Module):
    """Compute one number in (0, 1) per channel from the global average."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attn = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1), nn.SiLU(), nn.Conv2d(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """B x C x H x W to B x C x 1 x 1."""
        return torch.sigmoid(self.attn(x))
