"""Build a light 2D U-Net, the segmenter that teaches, and a plain generator."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.core.constants import CLASSES, MODALITIES, TUMOUR_TYPES, VIEWS
from app.networks.architectures import UNET_WIDTHS, UNetConfig
from app.networks.blocks import NORM_GROUPS, group_norm
from app.networks.confidence import SliceNetwork, new_head, without_absent


class _Norm(nn.GroupNorm):
    """Apply torch's GroupNorm by the way that trains fast."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out as in."""
        return group_norm(x, self.num_groups, self.weight, self.bias)


class _Silu(nn.Module):
    """Apply SiLU, in place where nothing learns: on a processor memory is what takes its time."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape out as in."""
        return F.silu(x, inplace=not torch.is_grad_enabled())


class ConvPair(nn.Sequential):
    """Twice: 3 x 3 convolution, GroupNorm, SiLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        layers: list[nn.Module] = []
        for before in (in_channels, out_channels):
            layers += [
                nn.Conv2d(before, out_channels, 3, padding=1, bias=False),
                _Norm(NORM_GROUPS, out_channels),
                _Silu(),
            ]
        super().__init__(*layers)


class UNet(nn.Module):
    """Encode by max pooling, decode by nearest doubling and 1 x 1 convolutions, with skips.

    Source: nnU-Net's plain 2D design (Isensee et al., Nature Methods 2021), narrowed.
    """

    def __init__(self, in_channels: int, out_channels: int, widths: tuple[int, ...] = UNET_WIDTHS) -> None:
        super().__init__()
        inputs = (in_channels, *widths[:-1])
        self.downs = nn.ModuleList(ConvPair(a, b) for a, b in zip(inputs, widths, strict=True))
        self.reduces = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.ups = nn.ModuleList(ConvPair(2 * a, a) for a in widths[:-1])
        self.head = nn.Conv2d(widths[0], out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return B x out_channels x H x W.

        Args:
            x: B x in_channels x H x W, H and W multiples of 8.
        """
        out: Tensor = self.head(self.features(x))
        return out

    def features(self, x: Tensor) -> Tensor:
        """Return the input of the last convolution, B x widths[0] x H x W."""
        skips = []
        for level, down in enumerate(self.downs):
            x = down(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for skip, reduce, up in zip(skips[-2::-1], reversed(self.reduces), reversed(self.ups), strict=True):
            x = up(torch.cat([F.interpolate(reduce(x), scale_factor=2.0, mode="nearest"), skip], dim=1))
        return x


def code_planes(index: Tensor, count: int, like: Tensor) -> Tensor:
    """Spread one-hot codes to constant planes, B x count x H x W; -1 gives zeros.

    Args:
        index: (B,) whole numbers.
        like: B x C x H x W, whose size and type the planes take.
    """
    codes = (index[:, None] == torch.arange(count, device=index.device)[None]).to(like)
    return codes[:, :, None, None].expand(-1, -1, *like.shape[2:])


class Segmenter2d(nn.Module):
    """Segment slices of four sequences into `CLASSES` classes, by view and tumour type."""

    def __init__(self, widths: tuple[int, ...] = UNET_WIDTHS) -> None:
        super().__init__()
        self.widths = widths
        self.network = UNet(len(MODALITIES) + len(VIEWS) + len(TUMOUR_TYPES), CLASSES, widths)

    def forward(self, images: Tensor, view: Tensor, tumour_type: Tensor) -> Tensor:
        """Return logits, B x 4 x H x W.

        Args:
            images: normalized, B x 4 x H x W in challenge order, real or synthesised.
            view: (B,) index in `VIEWS`.
            tumour_type: (B,) index in `TUMOUR_TYPES`, -1 where it is not known.
        """
        codes = [code_planes(view, len(VIEWS), images), code_planes(tumour_type, len(TUMOUR_TYPES), images)]
        out: Tensor = self.network(torch.cat([images, *codes], dim=1))
        return out


class UNetGenerator(SliceNetwork):
    """Synthesise slices by a U-Net alone; it is called like `app.networks.hf_gan.HfGan`."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        seen = 1 + 2 * config.neighbours
        planes = seen * len(MODALITIES) + 2 * len(MODALITIES) + len(VIEWS) + config.intensity_code
        self.network = UNet(planes, config.slices, config.widths)
        self.confidence = new_head(config.widths[0], config.confidence, config.confidence_scale, config.slices)

    def features(
        self,
        images: Tensor,
        present: Tensor,
        target: Tensor,
        view: Tensor | None = None,
        intensity: Tensor | None = None,
        members: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Return the input of `image` and `error`, B x widths[0] x H x W; arguments as `forward`.

        With neighbours `images` is B x 4 (1 + 2 neighbours) x H x W: the four sequences of the slice that is made, then
        of each neighbour in the order of `app.preprocessing.slices.neighbour_offsets`.
        """
        if view is None:
            raise ValueError("this network was trained with a view code; say which view each slice is from")
        images = without_absent(images, present, self.config.background)
        planes = [
            images,
            present[:, :, None, None].to(images).expand(-1, -1, *images.shape[2:]),
            code_planes(target, len(MODALITIES), images),
            code_planes(view, len(VIEWS), images),
        ]
        if self.config.intensity_code:
            if intensity is None:
                raise ValueError("this network was trained with an intensity code; give the target's median")
            planes.append(intensity.to(images)[:, None, None, None].expand(-1, 1, *images.shape[2:]))
        return self.network.features(torch.cat(planes, dim=1))

    def image(self, features: Tensor) -> Tensor:
        """Compute the image, see `SliceNetwork.image`."""
        out: Tensor = self.network.head(features)
        return out
