"""The generator of CG-SAMR: encoder, decoder with stretch-out up-sampling, synthesis and confidence modules."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from app.networks.architectures import CgSamrConfig
from app.networks.cgsamr.layers import Encoder, Norm, ResidualBlock, conv_block, up_block


@dataclass(frozen=True)
class SimulatedSlices:
    """Hold what one pass gives.

    Attributes:
        image: all sequences in [-1, 1], B x sequences x H x W.
        intermediate: the same at half scale; None without confidence.
        confidence: in (0, 1), at half scale; None without.
    """

    image: Tensor
    intermediate: Tensor | None = None
    confidence: Tensor | None = None


class SynthesisModule(nn.Module):
    """Make the intermediate image of the half-scale features by four convolutional blocks.

    The last block ends in a hyperbolic tangent and no normalization: its result is an image.
    """

    def __init__(self, features: int, width: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_module_blocks(features, width, norm), nn.Conv2d(width, outputs, 3, padding=1))

    def forward(self, features: Tensor) -> Tensor:
        """Return the image in [-1, 1], B x outputs x h x w."""
        return torch.tanh(self.layers(features))


class ConfidenceModule(nn.Module):
    """Judge the intermediate image pixel by pixel by four convolutional blocks; the last one ends in a sigmoid."""

    def __init__(self, features: int, width: int, outputs: int, norm: Norm) -> None:
        super().__init__()
        blocks = _module_blocks(features + outputs, width, norm)
        self.layers = nn.Sequential(*blocks, nn.Conv2d(width, outputs, 3, padding=1))

    def forward(self, features: Tensor, image: Tensor) -> Tensor:
        """Return the confidence in (0, 1), in float32, as large as the image."""
        return torch.sigmoid(self.layers(torch.cat([features, image], dim=1)).float())


def _module_blocks(inputs: int, width: int, norm: Norm) -> list[nn.Module]:
    return [conv_block(inputs, width, norm), conv_block(width, width, norm), conv_block(width, width, norm)]


class Branch(nn.Module):
    """Bring the code up for some sequences, by way of an intermediate image and its confidence at half scale."""

    def __init__(self, config: CgSamrConfig, outputs: int) -> None:
        super().__init__()
        widths, norm = config.widths, config.norm
        self.up = nn.Sequential(
            *(up_block(widths[i], widths[i - 1], norm, config.up) for i in range(config.halvings, 1, -1))
        )
        half, fed = widths[1], widths[1]
        if config.confidence:
            self.synthesis: SynthesisModule | None = SynthesisModule(half, widths[0], outputs, norm)
            self.judgement: ConfidenceModule | None = ConfidenceModule(half, widths[0], outputs, norm)
            fed += outputs
        else:
            self.synthesis = self.judgement = None
        self.rise = up_block(fed, widths[0], norm, config.up)
        self.detail = conv_block(widths[0] + config.inputs, widths[0], norm) if config.skip else None
        self.last = nn.Conv2d(widths[0], outputs, 7, padding=3)

    def forward(self, code: Tensor, inputs: Tensor | None) -> SimulatedSlices:
        """Make the sequences.

        Args:
            code: B x C x H/16 x W/16.
            inputs: what the code is of, B x inputs x H x W; looked at where the shape has a skip.
        """
        features = self.up(code)
        if self.synthesis is None or self.judgement is None:
            return SimulatedSlices(self._image(features, inputs))
        intermediate = self.synthesis(features)
        confidence = self.judgement(features, intermediate)
        fed = torch.cat([features, (intermediate * confidence).to(features.dtype)], dim=1)
        return SimulatedSlices(self._image(fed, inputs), intermediate, confidence)

    def _image(self, features: Tensor, inputs: Tensor | None) -> Tensor:
        """Bring half-scale features to the image."""
        risen = self.rise(features)
        if self.detail is not None and inputs is not None:
            risen = self.detail(torch.cat([risen, inputs.to(risen.dtype)], dim=1))
        return torch.tanh(self.last(risen))


class StretchOutDecoder(nn.Module):
    """Decode a code by three residual blocks and one branch per sequence; without stretch-out one for all."""

    def __init__(self, config: CgSamrConfig) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResidualBlock(config.widths[-1], config.norm) for _ in range(3)))
        count, outputs = (config.sequences, 1) if config.stretch_out else (1, config.sequences)
        self.branches = nn.ModuleList(Branch(config, outputs) for _ in range(count))

    def forward(self, code: Tensor, inputs: Tensor | None = None) -> SimulatedSlices:
        """Make all sequences of a code, B x C x H/16 x W/16; `inputs` as `Branch.forward`."""
        code = self.blocks(code)
        made = [branch(code, inputs) for branch in self.branches]
        return SimulatedSlices(
            torch.cat([one.image for one in made], dim=1),
            _joined([one.intermediate for one in made]),
            _joined([one.confidence for one in made]),
        )


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there, dim=1) if there else None


class CgSamr(nn.Module):
    """Make all sequences of an exam's slices from the lesion map and the anatomical prior (G, equations 1 to 6)."""

    def __init__(self, config: CgSamrConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.inputs, config.widths, config.norm)
        self.decoder = StretchOutDecoder(config)

    def forward(self, inputs: Tensor) -> SimulatedSlices:
        """Make slices.

        Args:
            inputs: B x inputs x H x W, sides multiples of 16: normal brain and lesion labels (0 or 1), then the prior:
                of every sequence the atlas in [-1, 1] at the slice below, this one and the one above.
        """
        made: SimulatedSlices = self.decoder(self.encoder(inputs), inputs)
        return made
