"""The generator of teacher and student: an encoder per sequence, their fusion, one decoder.

Layers are numbered as in the generator of CUT (Park et al., ECCV 2020), from which the paper takes its numbers: 0 is
the padded input, 4 and 8 the convolutions of both halvings, 12 and 16 the first and fifth residual block, 21 the
decoder's first layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from app.networks.architectures import Ds3NetConfig

#: Layers whose patches are contrasted (equation 3), and whose features are distilled (equation 6).
CONTRASTED: Final = (0, 4, 8, 12, 16)
DISTILLED: Final = (4, 8, 12, 16, 21)
#: The decoder's first layer; all before it are the encoders'.
DECODER_LAYER: Final = 21


def reflected(x: Tensor, width: int) -> Tensor:
    """Pad both sides of rows and columns by reflection; B x C x H x W, sides above `width`."""
    if not torch.compiler.is_exporting():
        return nn.functional.pad(x, (width, width, width, width), mode="reflect")
    # The same by slices: of torch's own padding, a graph of variable size takes minutes to write.
    x = torch.cat([x[..., 1 : width + 1].flip(-1), x, x[..., -width - 1 : -1].flip(-1)], dim=-1)
    return torch.cat([x[..., 1 : width + 1, :].flip(-2), x, x[..., -width - 1 : -1, :].flip(-2)], dim=-2)


class Reflection(nn.Module):
    """Pad by reflection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """Return x with so many rows and columns more on each side."""
        return reflected(x, self.width)


class ReflectedConv2d(nn.Conv2d):
    """Convolve an image that is padded by reflection."""

    def forward(self, input: Tensor) -> Tensor:
        """Same height and width out as in."""
        return super().forward(reflected(input, self.kernel_size[0] // 2))


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with instance norm beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ReflectedConv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(),
            ReflectedConv2d(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out as in."""
        out: Tensor = x + self.layers(x)
        return out


class Encoder(nn.Module):
    """One sequence down to a quarter of its sides, then residual blocks: layers 0 to 20."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [Reflection(3), nn.Conv2d(1, width, 7), nn.InstanceNorm2d(width), nn.ReLU()]
        for a, b in ((width, 2 * width), (2 * width, 4 * width)):
            # The average halves, so that no frequency folds over.
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.InstanceNorm2d(b), nn.ReLU(), nn.AvgPool2d(2)]
        self.layers = nn.ModuleList([*layers, *(ResidualBlock(4 * width) for _ in range(blocks))])

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """Return what each layer gives, by its number.

        Args:
            image: B x 1 x H x W, sides multiples of 4.
        """
        features, x = {}, image
        for number, layer in enumerate(self.layers):
            x = layer(x)
            features[number] = x
        return features


class SequenceFusion(nn.Module):
    """Weigh the sequences channel by channel: squeeze and excitation with a softmax over them in place of the sigmoid.

    Source: section 2.2; Hu et al., Squeeze-and-excitation networks, CVPR 2018.
    """

    def __init__(self, channels: int, sequences: int, reduction: int = 16) -> None:
        super().__init__()
        joined = channels * sequences
        self.sequences = sequences
        self.gates = nn.Sequential(
            nn.Linear(joined, max(joined // reduction, 4)), nn.ReLU(), nn.Linear(max(joined // reduction, 4), joined)
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return the weighted sum, B x C x h x w."""
        stacked = torch.stack(features, dim=1)
        squeezed = stacked.mean(dim=(3, 4)).flatten(1)
        gates = self.gates(squeezed).unflatten(1, (self.sequences, -1)).softmax(dim=1)
        out: Tensor = (stacked * gates[..., None, None]).sum(dim=1)
        return out


@dataclass(frozen=True)
class Ds3NetOutput:
    """Hold what one pass gives.

    Attributes:
        image: the made sequence in [-1, 1], B x 1 x H x W.
        features: per layer, those of all encoders side by side; of layer 21 the decoder's.
    """

    image: Tensor
    features: dict[int, Tensor]


class Ds3NetGenerator(nn.Module):
    """Make one sequence from several."""

    def __init__(self, config: Ds3NetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.encoders = nn.ModuleList([Encoder(width, config.blocks) for _ in range(config.sources)])
        self.fusion = SequenceFusion(4 * width, config.sources)
        self.rise = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.decoder = nn.Sequential(
            nn.Conv2d(4 * width, 2 * width, 3, padding=1), nn.InstanceNorm2d(2 * width), nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.Conv2d(2 * width, width, 3, padding=1), nn.InstanceNorm2d(width), nn.ReLU(),
            ReflectedConv2d(width, 1, 7), nn.Tanh(),
        )  # fmt: skip

    def forward(self, sources: Tensor) -> Ds3NetOutput:
        """Make the sequence.

        Args:
            sources: in [-1, 1], B x sources x H x W, sides multiples of 4.
        """
        features, last = self._encode(sources)
        features[DECODER_LAYER] = risen = self.rise(self.fusion(last))
        return Ds3NetOutput(self.decoder(risen), features)

    def last_features(self, sources: Tensor) -> Tensor:
        """Return the input of the last convolution, B x width x H x W; `image` makes the sequence of it."""
        out: Tensor = self.decoder[:-2](self.rise(self.fusion(self._encode(sources)[1])))
        return out

    def image(self, features: Tensor) -> Tensor:
        """Compute the image in [-1, 1], B x 1 x H x W, from the last features."""
        out: Tensor = self.decoder[-2:](features)
        return out

    def encode(self, sources: Tensor) -> dict[int, Tensor]:
        """Return the encoders' features alone, side by side per layer."""
        return self._encode(sources)[0]

    def encode_image(self, image: Tensor) -> dict[int, Tensor]:
        """Return the features of a single image, seen by every encoder.

        The paper sends the made sequence through the generator again (equation 3) without saying through which of the
        three encoders: here through all of them.
        """
        return self.encode(image.expand(-1, self.config.sources, -1, -1))

    def _encode(self, sources: Tensor) -> tuple[dict[int, Tensor], list[Tensor]]:
        each = [encoder(sources[:, i : i + 1]) for i, encoder in enumerate(self.encoders)]
        last = max(each[0])
        features = {number: torch.cat([f[number] for f in each], dim=1) for number in sorted({*CONTRASTED, *DISTILLED})
                    if number in each[0]}  # fmt: skip
        return features, [f[last] for f in each]


class ProjectionHeads(nn.Module):
    """Map features of chosen layers to unit vectors, an MLP of two layers each (H_l in equation 3)."""

    def __init__(self, config: Ds3NetConfig, size: int = 256) -> None:
        super().__init__()
        width, count = config.width, config.sources
        channels = {0: 1, 4: 2 * width, 8: 4 * width, 12: 4 * width, 16: 4 * width}
        self.heads = nn.ModuleDict(
            {
                str(layer): nn.Sequential(nn.Linear(count * channels[layer], size), nn.ReLU(), nn.Linear(size, size))
                for layer in CONTRASTED
            }
        )

    def forward(self, features: Tensor, layer: int, places: Tensor) -> Tensor:
        """Return the unit vectors of some places, B x P x size.

        Args:
            features: of the layer, B x C x h x w.
            places: flat indices of h x w, P.
        """
        picked = features.flatten(2)[..., places].movedim(1, 2)
        return nn.functional.normalize(self.heads[str(layer)](picked), dim=-1)


class PatchDiscriminator(nn.Module):
    """Judge patches of 70 x 70 pixels of one sequence (PatchGAN, Isola et al., CVPR 2017)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(1, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for a, b, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 1)):
            layers += [
                nn.Conv2d(a * width, b * width, 4, stride=stride, padding=1),
                nn.InstanceNorm2d(b * width),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """Return a score per patch, near 1 for real ones; B x 1 x h x w."""
        out: Tensor = self.layers(image)
        return out.float()
