"""A DS3-Net generator called like every other generator of slices."""

from __future__ import annotations

import torch
from torch import Tensor

from app.networks.architectures import Ds3NetConfig
from app.networks.confidence import SliceNetwork, without_absent
from app.networks.ds3net.generator import Ds3NetGenerator


class Ds3NetSliceGenerator(SliceNetwork):
    """Make the one sequence that it learnt from the three others; it is called like `app.networks.hf_gan.HfGan`."""

    def __init__(self, config: Ds3NetConfig) -> None:
        super().__init__()
        self.config = config
        self.generator = Ds3NetGenerator(config)
        self.confidence = None

    def features(
        self,
        images: Tensor,
        present: Tensor,
        target: Tensor,
        view: Tensor | None = None,
        intensity: Tensor | None = None,
        members: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Return the input of the last convolution, B x width x H x W.

        Args:
            images: in [-1, 1], B x 4 x H x W in challenge order, sides multiples of 4.
            present: B x 4, 1 where a sequence is there; others are seen as background.
            target: (B,) index of the sequence to make: the one that it learnt; never looked at.
            view, intensity, members: unused.
        """
        images = without_absent(images, present, self.config.background)
        return self.generator.last_features(self.sources_of(images, target))

    def image(self, features: Tensor) -> Tensor:
        """Compute the image, see `SliceNetwork.image`."""
        return self.generator.image(features)

    def sources_of(self, images: Tensor, target: Tensor) -> Tensor:
        """Pick the sequences other than the target, in challenge order: B x 3 x H x W.

        Args:
            images: B x 4 x H x W.
            target: (B,) index of the sequence to leave out.
        """
        number = torch.arange(self.config.sources, device=target.device)[None]
        index = number + (number >= target[:, None]).long()
        return images.gather(1, index[:, :, None, None].expand(-1, -1, *images.shape[2:]))
