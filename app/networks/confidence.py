"""Predict the expected error of each pixel of a synthesised slice.

Source: CG-SAMR (Guo et al., "Anatomic and Molecular MR Image Synthesis Using Confidence Guided CNNs").
It trains a confidence c per pixel by c * |error| - lambda * log(c). For a fixed error that is least at
c = lambda / |error|. So, whatever the link, lambda / c is the absolute error that the head expects. But for a constant,
the loss is lambda times the negative log-likelihood of a Laplace distribution of that scale (Kendall and Gal, NeurIPS
2017). All kinds give the expected error b in normalized units, deviations of the sequence over its brain.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn

from app.core.constants import Confidence

_HIDDEN: Final = 16
#: Keeps b within a factor of 3000 of its scale: nothing overflows, and no pixel takes the whole weight of a fusion.
_LIMIT: Final = 8.0


class ConfidenceHead(nn.Sequential):
    """Predict the error from a network's last features by two convolutions.

    Args:
        channels: of the features.
        kind: `bounded` or `likelihood`.
        slices: that one pass makes.

    Attributes:
        scale: lambda, 1 for `likelihood`. No parameter: it travels in the manifest's architecture.
    """

    def __init__(self, channels: int, kind: Confidence, scale: float = 1.0, slices: int = 1) -> None:
        super().__init__(nn.Conv2d(channels, _HIDDEN, 3, padding=1), nn.SiLU(), nn.Conv2d(_HIDDEN, slices, 1))
        self.kind: Confidence = kind
        self.scale = scale

    def forward(self, features: Tensor) -> Tensor:
        """Predict the absolute error b = lambda / c in normalized units.

        Args:
            features: B x channels x H x W.

        Returns:
            float32 B x slices x H x W.
        """
        for layer in self:
            features = layer(features)
        # Bfloat16 would round b to one part in 128, and its sums in the loss far more coarsely.
        doubt = torch.exp(-features.float().clamp(-_LIMIT, _LIMIT))
        return self.scale * (1 + doubt if self.kind == "bounded" else doubt)


def new_head(channels: int, kind: Confidence, scale: float, slices: int = 1) -> ConfidenceHead | None:
    """Build the head of a configuration; return None where it has none."""
    return None if kind == "none" else ConfidenceHead(channels, kind, scale, slices)


def without_absent(images: Tensor, present: Tensor, background: float) -> Tensor:
    """Set the slices of absent sequences to background.

    Args:
        images: normalized, B x 4 x H x W, or so for each of several slices.
        present: B x 4, 1 where that sequence is there.
    """
    there = present.repeat(1, images.shape[1] // present.shape[1])[:, :, None, None].to(images)
    return images * there + background * (1 - there)


class SliceNetwork(nn.Module):
    """Turn the last features of a generator into an image and an expected error.

    Attributes:
        confidence: the head, None where the configuration has none.
    """

    confidence: ConfidenceHead | None

    def forward(
        self,
        images: Tensor,
        present: Tensor,
        target: Tensor,
        view: Tensor | None = None,
        intensity: Tensor | None = None,
        members: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Return the normalized target, B x slices x H x W; arguments as `app.networks.hf_gan.HfGan.forward`."""
        return self.image(self.features(images, present, target, view, intensity, members))

    def features(
        self,
        images: Tensor,
        present: Tensor,
        target: Tensor,
        view: Tensor | None = None,
        intensity: Tensor | None = None,
        members: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Return the input of `image` and `error`; arguments as `forward`."""
        raise NotImplementedError

    def image(self, features: Tensor) -> Tensor:
        """Compute the normalized target, B x slices x H x W, from the last features.

        Networks make one slice in a pass, or several in the order of `app.preprocessing.slices.neighbour_offsets`.
        """
        raise NotImplementedError

    def error(self, features: Tensor) -> Tensor:
        """Compute the expected absolute error in normalized units, float32 B x slices x H x W.

        Raises:
            ValueError: the network has no head.
        """
        if self.confidence is None:
            raise ValueError("this network was trained without confidence; it has no head to ask")
        out: Tensor = self.confidence(features)
        return out
