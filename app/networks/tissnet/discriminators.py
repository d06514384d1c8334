"""The conditional 3D PatchGAN that tells real target sequences from made ones."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from app.networks.blocks3d import InstanceNorm3d


class PatchDiscriminator3d(nn.Module):
    """Judge every patch of a volume beside its source sequences.

    Source: PatchGAN (Isola et al., CVPR 2017), made 3D. Each score sees 70 x 70 voxels within slices and 16 across, as
    the TISS-Net paper states: five layers of 4 x 4 x 4 kernels, of which three halve within slices and none across.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            stride = (2, 2, 1) if i < 3 else (1, 1, 1)
            layers.append(nn.Conv3d(a, b, 4, stride=stride, padding=(1, 1, 2 if i % 2 else 1)))
            layers += [InstanceNorm3d(b)] if i else []
            layers.append(nn.LeakyReLU(0.2))
        layers.append(nn.Conv3d(widths[-1], 1, 4, padding=(1, 1, 1)))
        self.layers = nn.Sequential(*layers)

    def forward(self, sources: Tensor, target: Tensor) -> Tensor:
        """Return a score per patch, near 1 for real ones.

        Args:
            sources: in [-1, 1], B x channels - 1 x X x Y x Z.
            target: real or made, B x 1 x X x Y x Z.
        """
        joined = torch.cat([sources, target], dim=1).contiguous(memory_format=torch.channels_last_3d)
        out: Tensor = self.layers(joined)
        return out.float()
