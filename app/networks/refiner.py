"""Correct a synthesised volume by comparing it, voxel by voxel, with the present sequences."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
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
    """Attend voxel by voxel to one sequence, then feed forward (equations 3 to 5).

    Q is a linear projection of the normalised volume, K and V of the normalised sequence. Then

    - Attention = exp(-|Q - K|) * V, element by element (3);
    - F' = F + Attention (4);
    - F'' = F' + FF(F'), FF of two 1 x 1 convolutions (5).

    Where query and key agree in a channel, the sequence's value counts in full; it fades exponentially with their
    distance. No voxel looks at another, so the cost grows with the volume and not with its square.

    Source: the winner of BraSyn 2024 (Cho et al., section 2.2). The width of FF and its activation are ours.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_volume, self.norm_sequence = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key, self.value = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.feed = nn.Sequential(nn.Linear(channels, 2 * channels), Leaky(), nn.Linear(2 * channels, channels))

    def forward(self, x: Tensor, sequence: Tensor) -> Tensor:
        """Return the attended volume, in the shape of both arguments.

        Args:
            x, sequence: B x X x Y x Z x C; channels last, where a 1 x 1 convolution is a matrix product.
        """
        query, answering = self.query(_normed(x, self.norm_volume)), _normed(sequence, self.norm_sequence)
        x = x + attention_weights(query, self.key(answering)) * self.value(answering)
        out: Tensor = x + self.feed(x)
        return out


def _normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Normalise over the channels in the features' own precision: torch would write float32 volumes in between."""
    with torch.autocast(x.device.type, enabled=False):
        return F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """exp(-|Q - K|) of every element (equation 3): above 0, and 1 where both are equal."""
    return (query - key).abs().neg_().exp_()


class Refiner(nn.Module):
    """Add a residual to a first-stage volume by attention to the present sequences.

    Four encoders, one for each sequence, give features of full resolution. The volume goes through that of the
    sequence that it shows (equation 1), each present sequence through its own (2). The attentions (3 to 5) follow one
    another in challenge order. Several 3 x 3 x 3 convolutions and a 1 x 1 x 1 one make the residual.

    Source: the winner of BraSyn 2024 (Cho et al., section 2.2).
    """

    def __init__(self, config: RefinerConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.encoders = nn.ModuleList([FeatureNet3d(1, widths) for _ in MODALITIES])
        self.attention = nn.ModuleList([CrossAttention(widths[0]) for _ in MODALITIES])
        self.decoder = nn.Sequential(*[ConvUnit3d(widths[0], widths[0]) for _ in range(config.decoder_layers)])
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
            target: (B,) index of the sequence that `volume` shows, the same for the whole batch.
            members: indices of the present sequences; they attend in challenge order, however they are listed.

        Raises:
            ValueError: the volumes show different sequences.
        """
        shown = set(target.tolist())
        if len(shown) != 1:
            raise ValueError("all volumes of a batch must show the same sequence")
        dtype = self.head.weight.dtype
        x = self.encoders[shown.pop()](volume.to(dtype)).movedim(1, -1)
        for member in sorted(members):
            features = self.encoders[member](images[:, member : member + 1].to(dtype))
            x = self.attention[member](x, features.movedim(1, -1))
        residual = self.head(self.decoder(x.movedim(-1, 1)))
        # In bfloat16 the sum would lose what the first stage had.
        out: Tensor = volume.float() + residual.float()
        return out
