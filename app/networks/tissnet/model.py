"""The generator and the segmentor of TISS-Net, in a cascade."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from app.networks.architectures import TissNetConfig
from app.networks.tissnet.backbone import DualBranch25d, UNet25d, factors


@dataclass(frozen=True)
class TissNetOutput:
    """Hold what one pass gives; K regions, probabilities in [0, 1].

    Attributes:
        synthesis: the target sequence in [-1, 1], B x 1 x X x Y x Z.
        coarse: y_c, B x K x X x Y x Z.
        fine: y_f, same shape: the answer at run time.
        error: y_e, same shape: where `coarse` is wrong.
    """

    synthesis: Tensor
    coarse: Tensor
    fine: Tensor
    error: Tensor

    @property
    def refined(self) -> Tensor:
        """Give y_r, the coarse answer with its predicted errors turned round (equation 7)."""
        return refine(self.coarse, self.error)


class TissNet(nn.Module):
    """Make the target sequence and a coarse segmentation (G), then the fine one and the coarse one's errors (S).

    Args:
        config: widths, number of source sequences and of regions.
    """

    def __init__(self, config: TissNetConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = DualBranch25d(config.sources, (1, config.regions), config.widths, config.cases)
        inputs = config.sources + 1 + config.regions
        self.segmentor = DualBranch25d(inputs, (config.regions, config.regions), config.widths, config.cases)
        #: S_p: it segments the real target sequence alone, and judges the made one in training.
        self.perceptibility = UNet25d(1, config.regions, config.widths, config.cases)

    @property
    def factors(self) -> tuple[int, int, int]:
        """Return the divisors of the sides of its inputs."""
        return factors(len(self.config.widths))

    def forward(self, sources: Tensor, case: Tensor | None = None, coarse_apart: bool = False) -> TissNetOutput:
        """Complete and segment.

        Args:
            sources: the sequences in challenge order, in [-1, 1], -1 throughout where one is missing,
                B x sources x X x Y x Z.
            case: int64 (B,), number of the kind of exam, for networks of more than one.
            coarse_apart: whether no gradient of the segmentor reaches the coarse segmentation.
        """
        synthesis, coarse = self.generate(sources, case)
        given = coarse.detach() if coarse_apart else coarse
        fine, error = self.segmentor(torch.cat([sources, synthesis, given], dim=1), case)
        return TissNetOutput(synthesis, coarse, torch.sigmoid(fine), torch.sigmoid(error))

    def generate(self, sources: Tensor, case: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the target sequence and the coarse segmentation alone."""
        image, coarse = self.generator(sources, case)
        return torch.tanh(image), torch.sigmoid(coarse)


def refine(coarse: Tensor, error: Tensor) -> Tensor:
    """Compute y_r = (1 - y_c) y_e + y_c (1 - y_e) (equation 7); any shape."""
    return (1 - coarse) * error + coarse * (1 - error)
