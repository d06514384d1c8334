"""The plain baseline: a U-Net that makes all sequences, as in pix2pix (Isola et al., CVPR 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.networks.architectures import CgSamrConfig
from app.networks.cgsamr.generator import SimulatedSlices
from app.networks.unet import UNet

#: Channels of a level as a multiple of `CgSamrConfig.width`; with these it has about as many weights as a CG-SAMR.
_MULTIPLES = (2, 4, 8, 24, 32)


class Pix2Pix(nn.Module):
    """Make all sequences of slices by a U-Net alone; called like `app.networks.cgsamr.generator.CgSamr`."""

    def __init__(self, config: CgSamrConfig) -> None:
        super().__init__()
        self.config = config
        # Group norm wants multiples of eight.
        widths = tuple(max(8, config.width * m // 8 * 8) for m in _MULTIPLES)
        self.network = UNet(config.inputs, config.sequences, widths)

    def forward(self, inputs: Tensor) -> SimulatedSlices:
        """Make slices, see `CgSamr.forward`."""
        return SimulatedSlices(torch.tanh(self.network(inputs)))
