"""Correct a synthesised volume by comparing it, voxel by voxel, with the present sequences."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from app.core.constants import MODALITIES, Modality
from app.networks.architectures import RefinerConfig
from app.networks.blocks3d import ConvPair3d, ConvUnit3d, Decoder3d, Leaky


class FeatureNet3d(nn.Module):
    """Compute features of the finest level by a 3D U-Net.

    Nearly all the time goes into full resolution, and most of that into memory, not arithmetic. So there it convolves
    once on the way down and once on the way up; twice everywhere below.
    """

    def __init__(self, in_channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        fine, *coarse = widths
        self.stem = ConvUnit3d(in_channels, fine)
        self.downs = nn.ModuleList([ConvPair3d(a, b, 2) for a, b in pairwise(widths)])
        self.decoder = Decoder3d(tuple(coarse))
        self.up = nn.ConvTranspose3d(coarse[0], fine, 2, stride=2)
        self.join = ConvUnit3d(2 * fine, fine)

    def forward(self, x: Tensor) -> Tensor:
        """Return B x widths[0] x X x Y x Z.

        Args:
            x: B x in_channels x X x Y x Z, sides multiples of 2 ** (levels - 1).
        """
        skip = self.stem(x.contiguous(memory_format=torch.channels_last_3d))
        x, levels = skip, []
        for down in self.downs:
            x = down(x)
            levels.append(x)
        features: Tensor = self.join(torch.cat([self.up(self.decoder(levels)[0]), skip], dim=1))
        return features


class CrossAttention(nn.Module):
    """Attend voxel by voxel to one sequence, then normalise and feed forward.

    Where query and key agree in a channel, the sequence's value counts in full; it fades exponentially with their
    distance. No voxel looks at another, so the cost grows with the volume and not with its square.

    Source: the winner of BraSyn 2024, which states exp(-|Q - K|) * V, layer norm and a 1 x 1 feed-forward with a
    residual. The residual of the attention itself is our reading.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Linear(channels, channels)
        self.key, self.value = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.norm = nn.LayerNorm(channels)
        self.feed = nn.Sequential(nn.Linear(channels, 2 * channels), Leaky(), nn.Linear(2 * channels, channels))

    def forward(self, x: Tensor, sequence: Tensor) -> Tensor:
        """Return the attended volume, in the shape of both arguments.

        Args:
            x, sequence: B x X x Y x Z x C; channels last, where a 1 x 1 convolution is a matrix product.
        """
        weights = attention_weights(self.query(x), self.key(sequence))
        x = self.norm(x + weights * self.value(sequence))
        out: Tensor = x + self.feed(x)
        return out


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """exp(-|Q - K|) of every element: above 0, and 1 where both are equal."""
    return (query - key).abs().neg_().exp_()


class Refiner(nn.Module):
    """Add a residual to a first-stage volume by attention to the present sequences.

    Features of the volume at full resolution ask, and those of each present sequence answer. The attentions follow one
    another in challenge order, before a convolutional decoder. Only the finest features attend: coarser ones reach them
    through the U-Nets' own decoders.

    Source: the winner of BraSyn 2024 (the refinement behind its 2D generator).
    """

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = config
        widths, codes = config.widths, len(MODALITIES)
        self.asking = FeatureNet3d(1 + codes, widths)
        answering = [1 + codes] if config.shared_encoder else [1] * codes
        self.answering = nn.ModuleList([FeatureNet3d(channels, widths) for channels in answering])
        self.attention = nn.ModuleList([CrossAttention(widths[0]) for _ in MODALITIES])
        self.decoder = ConvUnit3d(widths[0], widths[0])
        self.head = nn.Conv3d(widths[0], 1, 1)
        # Untrained it changes nothing, and training starts from what the first stage has reached.
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    @property
    def targets(self) -> tuple[Modality, ...]:
        """Return the sequences that it changes."""
        return MODALITIES

    @property
    def factor(self) -> int:
        """Return the divisor of the sides of its inputs."""
        return int(2 ** (len(self.config.widths) - 1))

    def forward(self, volume: Tensor, images: Tensor, target: Tensor, members: tuple[int, ...]) -> Tensor:
        """Return the refined normalized volume, float32 B x 1 x X x Y x Z.

        Args:
            volume: normalized, float32 B x 1 x X x Y x Z, from the first stage.
            images: normalized, B x 4 x X x Y x Z in challenge order; those of no member are ignored.
            target: (B,) index of the sequence that `volume` shows.
            members: indices of the present sequences; they attend in challenge order, however they are listed.
        """
        dtype = self.head.weight.dtype
        asked = torch.cat([volume.to(dtype), _planes(target, volume, dtype)], dim=1)
        x = self.asking(asked).movedim(1, -1)
        for member in sorted(members):
            image = images[:, member : member + 1].to(dtype)
            if self.config.shared_encoder:
                which = torch.full_like(target, member)
                features = self.answering[0](torch.cat([image, _planes(which, image, dtype)], dim=1))
            else:
                features = self.answering[member](image)
            x = self.attention[member](x, features.movedim(1, -1))
        residual = self.head(self.decoder(x.movedim(-1, 1)))
        # In bfloat16 the sum would lose what the first stage had.
        out: Tensor = volume.float() + residual.float()
        return out


def _planes(index: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """Spread one-hot codes of sequences to constant planes, B x 4 x X x Y x Z."""
    codes = (index[:, None] == torch.arange(len(MODALITIES), device=index.device)[None]).to(dtype)
    return codes[:, :, None, None, None].expand(-1, -1, *like.shape[2:])
