"""Tell real slices from synthesised ones, and name their sequence."""

from __future__ import annotations

from typing import Final, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from app.core.constants import MODALITIES

DiscriminatorForm = Literal["pix2pix", "published"]
_SLOPE: Final = 0.2
#: GroupNorm groups of the published form, and the side of its last map: that of slices of 240 x 240.
_GROUPS, _SIDE = 8, 29


class Discriminator(nn.Module):
    """Tell real from synthesised by patches of 70 x 70 pixels, and name the sequence.

    Four 4 x 4 convolutions of width 1, 2, 4 and 8 times `width`, the first three of stride 2, the last of stride 1;
    the second to fourth normalized; LeakyReLU after each. Another 4 x 4 convolution gives the patches.

    Source: PatchGAN of pix2pix (Isola et al., CVPR 2017); the classification head as in HF-GAN.

    Args:
        width: channels of the first stage.
        form: `pix2pix` normalizes by instance and names the sequence by the mean of the last map. `published` is that
            of the BraSyn 2025 entry (section 4.3.2 of its thesis; width 32): GroupNorm, and a classifier that is one
            convolution over the whole last map. Maps of another size than 29 x 29 are averaged to that first.
    """

    def __init__(self, width: int = 64, form: DiscriminatorForm = "pix2pix") -> None:
        super().__init__()
        self.width, self.form = width, form
        layers: list[nn.Module] = [nn.Conv2d(1, width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        for before, after, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 1)):
            layers += [
                nn.Conv2d(before * width, after * width, 4, stride=stride, padding=1, bias=False),
                _norm(after * width, form),
                nn.LeakyReLU(_SLOPE),
            ]
        self.features = nn.Sequential(*layers)
        self.patches = nn.Conv2d(8 * width, 1, 4, padding=1)
        count = len(MODALITIES)
        self.classes = nn.Conv2d(8 * width, count, _SIDE) if form == "published" else nn.Linear(8 * width, count)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of real patches, B x 1 x h x w, and of the sequence, B x 4.

        Args:
            images: normalized, B x 1 x H x W, H and W at least 32.
        """
        features = self.features(images)
        return self.patches(features), self._classify(features)

    def _classify(self, features: Tensor) -> Tensor:
        if self.form == "pix2pix":
            out: Tensor = self.classes(features.mean(dim=(2, 3)))
            return out
        if features.shape[2:] != (_SIDE, _SIDE):
            features = F.adaptive_avg_pool2d(features, _SIDE)
        return self.classes(features).flatten(1)  # type: ignore[no-any-return]


def _norm(channels: int, form: DiscriminatorForm) -> nn.Module:
    return nn.GroupNorm(_GROUPS, channels) if form == "published" else nn.InstanceNorm2d(channels, affine=True)
