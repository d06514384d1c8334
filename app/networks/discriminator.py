"""Tell real slices from synthesised ones, and name their sequence."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

from app.core.constants import MODALITIES

_SLOPE: Final = 0.2


class Discriminator(nn.Module):
    """Tell real from synthesised by patches of 70 x 70 pixels, and name the sequence.

    Source: PatchGAN of pix2pix (Isola et al., CVPR 2017); the classification head as in HF-GAN.

    Args:
        width: channels of the first stage; the paper's is 64.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.width = width
        layers: list[nn.Module] = [nn.Conv2d(1, width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        for before, after, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 1)):
            layers += [
                nn.Conv2d(before * width, after * width, 4, stride=stride, padding=1, bias=False),
                nn.InstanceNorm2d(after * width, affine=True),
                nn.LeakyReLU(_SLOPE),
            ]
        self.features = nn.Sequential(*layers)
        self.patches = nn.Conv2d(8 * width, 1, 4, padding=1)
        self.classes = nn.Linear(8 * width, len(MODALITIES))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of real patches, B x 1 x h x w, and of the sequence, B x 4.

        Args:
            images: normalized, B x 1 x H x W, H and W at least 32.
        """
        features = self.features(images)
        return self.patches(features), self.classes(features.mean(dim=(2, 3)))
