"""The discriminators of CG-SAMR: patches of each region by itself, at two scales."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Regions that are judged apart, in the order of their masks.
REGIONS = ("background", "normal brain", "lesion")
_SLOPE = 0.2


class PatchDiscriminator(nn.Module):
    """Tell real from made patches, and give what every layer sees.

    Source: PatchGAN of pix2pixHD (Wang et al., CVPR 2018): 4 x 4 convolutions, three of them of stride 2, with instance
    norm but in the first; the paper does not print its layers.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Sequential(nn.Conv2d(inputs, width, 4, 2, 1), nn.LeakyReLU(_SLOPE))]
        for a, b, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 1)):
            conv = nn.Conv2d(a * width, b * width, 4, stride, 1)
            layers.append(nn.Sequential(conv, nn.InstanceNorm2d(b * width, affine=True), nn.LeakyReLU(_SLOPE)))
        self.layers = nn.ModuleList([*layers, nn.Conv2d(8 * width, 1, 4, 1, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return what each layer gives, in float32; the last are the patches' logits, B x 1 x h x w.

        Args:
            x: B x inputs x H x W, sides of 32 pixels at least.
        """
        features = []
        for layer in self.layers:
            x = layer(x)
            features.append(x.float())
        return features


def region_masks(brain: Tensor, lesion: Tensor) -> Tensor:
    """Mark background, normal brain and lesion: 0 or 1, B x 3 x H x W.

    Args:
        brain, lesion: 1 inside, B x 1 x H x W; lesion goes before brain.
    """
    lesion = (lesion > 0).to(brain)
    normal = (brain > 0).to(brain) * (1 - lesion)
    return torch.cat([1 - normal - lesion, normal, lesion], dim=1)


class LabelwiseDiscriminators(nn.Module):
    """Judge each region at each scale by a network of its own (D1 to D6).

    Args:
        inputs: channels of the condition and the exam together.
        width: channels of the first layer.
        labelwise: whether regions are judged apart; else one network sees all of the slice.
        scales: at the last of them sides are 1 / 2^(scales - 1); halves are means over 2 x 2 pixels.
    """

    def __init__(self, inputs: int, width: int, labelwise: bool = True, scales: int = 2) -> None:
        super().__init__()
        self.labelwise, self.scales = labelwise, scales
        count = (len(REGIONS) if labelwise else 1) * scales
        self.networks = nn.ModuleList(PatchDiscriminator(inputs, width) for _ in range(count))

    def forward(self, condition: Tensor, exam: Tensor, masks: Tensor) -> list[list[Tensor]]:
        """Return the layers of each discriminator.

        Args:
            condition: what the exam is made from, B x C x H x W.
            exam: real or made sequences, B x S x H x W.
            masks: of the regions, B x 3 x H x W; masking comes before scaling.
        """
        both = torch.cat([condition, exam], dim=1)
        results, networks = [], iter(self.networks)
        for region in range(len(REGIONS) if self.labelwise else 1):
            seen = both * masks[:, region : region + 1] if self.labelwise else both
            for scale in range(self.scales):
                seen = F.avg_pool2d(seen, 2) if scale else seen
                results.append(next(networks)(seen))
        return results
