"""Synthesise slices by hybrid fusion: encoders per sequence and early, fusion, infuser, decoder.

Source: the released BraSyn 2025 entry (AImageLab, "No More Slice Wars"), after HF-GAN (hybrid fusion) and the BraSyn
2024 winner (intensity code). `HfGanConfig.released` is the shape that computes the released function.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.core.constants import MODALITIES
from app.networks.architectures import Gate, HfGanConfig
from app.networks.blocks import ChannelGate, Encoder, GroupedNorm, ResidualBlock, Upsample
from app.networks.confidence import SliceNetwork, new_head, without_absent
from app.networks.infuser import Infuser


class Fusion(nn.Module):
    """Fuse the bottlenecks of the present sequences and of the early encoder into one map.

    With f_i the present sequences' features, e the early encoder's, and g the gates, per channel:

        s = sum_i g_i f_i + g_e e,  h = sum_i softmax_i(g_i) f_i + e,  result = mix(s, h)

    With one sequence alone, e is left out of both.

    Args:
        gate: `channel` for that, the thesis's equations. `released` for what the public weights were trained with:
            where two or more are present, the first channel's g_i stands for all channels; g_e stays per channel.
    """

    def __init__(self, channels: int, members: int, gate: Gate = "channel") -> None:
        super().__init__()
        self.gate = gate
        self.gates = nn.ModuleList(ChannelGate(channels) for _ in range(members + 1))
        self.mix = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, features: Tensor, early: Tensor, present: Tensor, members: tuple[int, ...]) -> Tensor:
        """B x C x h x w.

        Args:
            features: B x n x C x h x w, bottlenecks of the encoders that were run.
            early: B x C x h x w.
            present: B x n, 1 where the sequence is there, else 0; at least one 1 per row.
            members: which sequences the n are.
        """
        gates = torch.stack([self.gates[m](features[:, i]) for i, m in enumerate(members)], dim=1)
        there = present[:, :, None, None, None].to(features)
        # With one sequence alone, the early encoder has nothing to add.
        several = (present.sum(dim=1) > 1)[:, None, None, None].to(features)
        if self.gate == "released":
            gates = torch.where(several[:, None] > 0, gates[:, :, :1], gates)
        summed = (there * gates * features).sum(dim=1) + several * self.gates[-1](early) * early
        shares = gates.masked_fill(there == 0, float("-inf")).softmax(dim=1)
        blended = (shares * features).sum(dim=1) + several * early
        out: Tensor = self.mix(torch.cat([summed, blended], dim=1))
        return out


class Decoder(nn.Module):
    """Decode by four stages of skip, residual block and up-sampling, then one channel."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.ups = nn.ModuleList()
        for skip, after, before in zip(widths[:0:-1], widths[-2::-1], (widths[-1], *widths[-2:0:-1]), strict=True):
            self.blocks.append(ResidualBlock(before + skip, after))
            self.ups.append(Upsample(after))
        self.last = ResidualBlock(widths[0], widths[0])
        self.norm = GroupedNorm(widths[0])
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: Tensor, skips: list[Tensor]) -> Tensor:
        """Return the features that `head` reads, B x widths[0] x H x W.

        Args:
            skips: the joined features of all stages but the finest, finer first.
        """
        for block, up, skip in zip(self.blocks, self.ups, skips[::-1], strict=True):
            x = up(block(torch.cat([x, skip], dim=1)))
        return F.silu(self.norm(self.last(x)))


class HfGan(SliceNetwork):
    """Synthesise slices of the missing sequence from those of the present ones."""

    def __init__(self, config: HfGanConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.early = Encoder(len(MODALITIES), widths)
        self.encoders = Encoder(1, widths, members=len(MODALITIES))
        self.fusion = Fusion(widths[-1], len(MODALITIES), config.gate)
        self.infuser = Infuser(
            widths[-1],
            activation=config.activation,
            position=config.position,
            view_code=config.view_code,
            intensity_code=config.intensity_code,
        )
        self.decoder = Decoder(widths)
        self.confidence = new_head(widths[0], config.confidence, config.confidence_scale)

    def forward(
        self,
        images: Tensor,
        present: Tensor,
        target: Tensor,
        view: Tensor | None = None,
        intensity: Tensor | None = None,
        members: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Return the normalized target, B x 1 x H x W.

        Args:
            images: normalized, B x 4 x H x W in challenge order, H and W multiples of 16.
            present: B x 4, 1 where that sequence is there; pixels of the others are ignored.
            target, view, intensity: (B,), see `Infuser`.
            members: the sequences present in every slice of the batch. Only their encoders are run. None runs all
                four and masks, for batches that mix subsets and for export.
        """
        fused, skips = self.encode(images, present, members)
        return self.decode(fused, skips, target, view, intensity)

    def encode(
        self, images: Tensor, present: Tensor, members: tuple[int, ...] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the fused bottleneck (B x C x H/16 x W/16), before any target, and the skips."""
        images = without_absent(images, present, self.config.background)
        stages, features, run = self._run_encoders(images, members)
        early = self.early(images)
        # A list as index would be copied to the device at every call, which a CUDA graph cannot hold.
        shares = torch.stack([present[:, m] for m in run], dim=1)
        # The finest features reach the decoder through the coarser ones only, as in the release.
        skips = _join_skips(stages[1:], early[1:], None if members else shares)
        return self.fusion(features, early[-1], shares, run), skips

    def decode(
        self,
        fused: Tensor,
        skips: list[Tensor],
        target: Tensor,
        view: Tensor | None = None,
        intensity: Tensor | None = None,
    ) -> Tensor:
        """Return the normalized target, B x 1 x H x W, from the result of `encode`."""
        return self.image(self.features_of(fused, skips, target, view, intensity))

    def features(
        self,
        images: Tensor,
        present: Tensor,
        target: Tensor,
        view: Tensor | None = None,
        intensity: Tensor | None = None,
        members: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Return the input of `image` and `error`, B x width x H x W; arguments as `forward`."""
        fused, skips = self.encode(images, present, members)
        return self.features_of(fused, skips, target, view, intensity)

    def features_of(
        self,
        fused: Tensor,
        skips: list[Tensor],
        target: Tensor,
        view: Tensor | None = None,
        intensity: Tensor | None = None,
    ) -> Tensor:
        """Return the same from the result of `encode`."""
        out: Tensor = self.decoder(self.infuser(fused, target, view, intensity), skips)
        return out

    def image(self, features: Tensor) -> Tensor:
        """Compute the image, see `SliceNetwork.image`."""
        out: Tensor = self.decoder.head(features)
        return out

    def _run_encoders(
        self, images: Tensor, members: tuple[int, ...] | None
    ) -> tuple[list[list[Tensor]], Tensor, tuple[int, ...]]:
        """Return features per stage and member, and stacked bottlenecks, B x n x C x h x w."""
        members = tuple(range(len(MODALITIES))) if members is None else members
        per_member = [self.encoders(images[:, m : m + 1], m) for m in members]
        stages = [list(stage) for stage in zip(*per_member, strict=True)]
        return stages, torch.stack(stages[-1], dim=1), members


def _join_skips(stages: list[list[Tensor]], early: list[Tensor], present: Tensor | None) -> list[Tensor]:
    """Average the present sequences per stage; add the early encoder where there are several.

    Args:
        present: B x n, 1 where the sequence is there; None where all n are, which needs no weighing.
    """
    if present is None:
        count = len(stages[0])
        totals = [sum(features[1:], start=features[0]) for features in stages]
        if count == 1:
            return totals
        return [torch.add(first, total, alpha=1 / count) for first, total in zip(early, totals, strict=True)]
    number = present.sum(dim=1)
    several = (number > 1)[:, None, None, None]
    joined = []
    for features, first in zip(stages, early, strict=True):
        weights = (present / number[:, None]).to(first)[:, :, None, None, None]
        mean = sum(weights[:, i] * feature for i, feature in enumerate(features))
        joined.append(mean + several.to(first) * first)
    return joined
