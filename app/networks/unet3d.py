"""The 3D segmenter, which finds tumours in real and synthesised exams."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.core.constants import CLASSES, MODALITIES
from app.networks.architectures import SEGMENTER3D_WIDTHS
from app.networks.blocks3d import ConvPair3d, Decoder3d


class Segmenter3d(nn.Module):
    """Segment volumes of four sequences into `CLASSES` classes.

    Source: nnU-Net's 3D full-resolution design (Isensee et al., Nature Methods 2021), narrowed: strided convolutions
    down, transposed ones up, instance norm, leaky ReLU, deep supervision.
    """

    def __init__(self, widths: tuple[int, ...] = SEGMENTER3D_WIDTHS) -> None:
        super().__init__()
        self.widths = widths
        inputs = (len(MODALITIES), *widths[:-1])
        self.downs = nn.ModuleList(
            [ConvPair3d(a, b, 2 if level else 1) for level, (a, b) in enumerate(zip(inputs, widths, strict=True))]
        )
        self.decoder = Decoder3d(widths)
        # The coarsest level has no head: what it sees is too coarse to be held to a label.
        self.heads = nn.ModuleList([nn.Conv3d(width, CLASSES, 1) for width in widths[:-1]])

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, B x 4 x X x Y x Z.

        Args:
            images: normalized, B x 4 x X x Y x Z in challenge order, sides multiples of `factor`.
        """
        out: Tensor = self.heads[0](self.features(images)[0])
        return out

    def deep(self, images: Tensor) -> list[Tensor]:
        """Return logits at full, half, a quarter ... of the resolution, for deep supervision."""
        return self.logits(self.features(images))

    def logits(self, features: list[Tensor]) -> list[Tensor]:
        """Return logits of every level that has a head, from `features`."""
        return [head(x) for head, x in zip(self.heads, features, strict=False)]

    @property
    def factor(self) -> int:
        """Return the divisor of the sides of its inputs."""
        return int(2 ** (len(self.widths) - 1))

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the input of the heads, finest level first.

        Returns:
            Per level i: B x widths[i] x X/2^i x Y/2^i x Z/2^i.
        """
        x, levels = images.contiguous(memory_format=torch.channels_last_3d), []
        for down in self.downs:
            x = down(x)
            levels.append(x)
        features: list[Tensor] = self.decoder(levels)
        return features
