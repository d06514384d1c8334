"""UCG-SAMR: lesion maps with tissue maps (domain one) and exams (domain two), translated both ways.

Domain one are the lesion labels with the probabilities of white matter, grey matter and fluid, all from 0 to 1; domain
two are the sequences in [-1, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.networks.architectures import CgSamrConfig
from app.networks.cgsamr.generator import SimulatedSlices, StretchOutDecoder
from app.networks.cgsamr.layers import Encoder, PlainDecoder


class UcgSamr(nn.Module):
    """Hold both encoders and both decoders: E1, F1 of domain one, E2, F2 of domain two."""

    def __init__(self, config: CgSamrConfig) -> None:
        super().__init__()
        self.config = config
        widths, norm = config.widths, config.norm
        self.encoder1 = Encoder(config.inputs, widths, norm)
        self.decoder1 = PlainDecoder(config.inputs, widths, norm, config.up)
        self.encoder2 = Encoder(config.sequences, widths, norm)
        self.decoder2 = StretchOutDecoder(config)

    def forward(self, inputs: Tensor) -> SimulatedSlices:
        """Make exams of domain one, F2(E1(x)): B x inputs x H x W, sides multiples of 16."""
        made: SimulatedSlices = self.decoder2(self.encoder1(inputs))
        return made

    def outline(self, images: Tensor) -> Tensor:
        """Find normal brain, lesion labels and tissues of exams, F1(E2(y)): probabilities, B x inputs x H x W."""
        found: Tensor = self.decoder1(self.encoder2(images))
        return found

    def segment(self, images: Tensor) -> Tensor:
        """Give each pixel its likeliest lesion label where one has more than a half, else 0; int64 B x H x W."""
        lesions = self.outline(images)[:, 1 : 1 + self.config.labels]
        best, label = lesions.max(dim=1)
        return torch.where(best > 0.5, label + 1, torch.zeros_like(label))
