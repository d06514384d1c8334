"""State the shapes of the networks for manifests, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from pydantic import ConfigDict

from app.core.constants import Confidence

Position = Literal["sinusoidal", "learned"]
Activation = Literal["gelu", "silu"]
Gate = Literal["channel", "released"]

#: Channels of the first stage of an HF-GAN per preset.
HF_GAN_PRESETS: Final[dict[str, int]] = {"full": 64, "half": 32, "compact": 16}
_HF_GAN_MULTIPLIERS: Final = (1, 2, 4, 8, 10)
#: Channels per level of a 2D U-Net; with two inputs' worth of codes this gives 1.8 million parameters.
UNET_WIDTHS: Final = (32, 64, 128, 256)
#: Channels per level of the 3D segmenter; 3.7 million parameters.
SEGMENTER3D_WIDTHS: Final = (16, 32, 64, 128, 128)
#: Channels per level of a refiner; the paper's has 64 in each.
REFINER_PRESETS: Final = {16: (16, 32, 64, 64), 32: (32, 64, 64, 64), 64: (64, 64, 64, 64)}

# A key that this version does not know may change what a network computes: it is refused.
_STRICT: Final = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class HfGanConfig:
    """Shape of the hybrid-fusion generator (`app.networks.hf_gan.HfGan`).

    Attributes:
        width: channels of the first stage, a multiple of 16; the five stages are 1, 2, 4, 8 and 10 times as wide.
        view_code, intensity_code: codes added to the sequence code.
        position, activation: see `app.networks.infuser.Infuser`; the release uses `learned`, and `gelu` with a view
            code, `silu` without.
        gate: how a sequence's gate weighs its features (`app.networks.hf_gan.Fusion`): `channel` as the thesis
            describes it, `released` as the public weights were trained.
        background: input value of background voxels and of every voxel of a missing sequence.
        confidence, confidence_scale: kind of the confidence head, and its lambda (`app.networks.confidence`).
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    width: int = 32
    view_code: bool = True
    intensity_code: bool = False
    position: Position = "sinusoidal"
    activation: Activation = "gelu"
    gate: Gate = "channel"
    background: float = -1.0
    confidence: Confidence = "none"
    confidence_scale: float = 1.0
    network: Literal["hf_gan"] = "hf_gan"
    # The runtime asks these of every generator.
    neighbours: ClassVar[int] = 0
    slices: ClassVar[int] = 1
    multiple: ClassVar[int] = 16

    @property
    def widths(self) -> tuple[int, ...]:
        """Return channels per stage."""
        return tuple(self.width * m for m in _HF_GAN_MULTIPLIERS)

    @classmethod
    def released(cls, view_code: bool = True) -> HfGanConfig:
        """Give the released network's: 80,859,521 parameters with the view code, 80,039,041 without.

        A network of this shape computes the released function, in float32 to rounding.
        """
        activation: Activation = "gelu" if view_code else "silu"
        return cls(width=64, view_code=view_code, position="learned", activation=activation, gate="released")


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a plain generator (`app.networks.unet.UNetGenerator`).

    Attributes:
        widths: channels per level.
        background: input value of background voxels and of every voxel of a missing sequence.
        intensity_code: whether one more input plane holds the target's median (`IntensityPrior`).
        confidence, confidence_scale: kind of the confidence head, and its lambda (`app.networks.confidence`).
        neighbours: slices on each side that it sees beside the one in the middle.
        slices: that one pass makes, the one in the middle and those nearest to it; odd.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    widths: tuple[int, ...] = UNET_WIDTHS
    background: float = -1.0
    intensity_code: bool = False
    confidence: Confidence = "none"
    confidence_scale: float = 1.0
    neighbours: int = 0
    slices: int = 1
    network: Literal["unet"] = "unet"
    # The runtime asks these of every generator.
    view_code: ClassVar[bool] = True
    position: ClassVar[Position] = "sinusoidal"

    @property
    def multiple(self) -> int:
        """What a slice's rows and columns must be a multiple of: every level but the first halves them."""
        return 1 << (len(self.widths) - 1)


@dataclass(frozen=True)
class Segmenter2dConfig:
    """Shape of the 2D segmenter (`app.networks.unet.Segmenter2d`): channels per level."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    widths: tuple[int, ...] = UNET_WIDTHS


#: Channels of the first layer of DS3-Net's generator.
DS3NET_WIDTHS: Final[dict[str, int]] = {"paper": 64, "compact": 16}


@dataclass(frozen=True)
class Ds3NetConfig:
    """Shape of a DS3-Net generator (`app.networks.ds3net.generator.Ds3NetGenerator`).

    Attributes:
        width: channels of the first layer.
        blocks: residual blocks of each encoder.
        sources: number of sequences that the target is made from.
        background: value of what is missing; images are in [-1, 1].
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    width: int = DS3NET_WIDTHS["compact"]
    blocks: int = 9
    sources: int = 3
    background: float = -1.0
    network: Literal["ds3net"] = "ds3net"
    # The runtime asks these of every generator.
    intensity_code: ClassVar[bool] = False
    confidence: ClassVar[Confidence] = "none"
    view_code: ClassVar[bool] = False
    neighbours: ClassVar[int] = 0
    slices: ClassVar[int] = 1
    multiple: ClassVar[int] = 16
    position: ClassVar[Position] = "sinusoidal"

    @property
    def widths(self) -> tuple[int, ...]:
        """Return channels per level of an encoder."""
        return (self.width, 2 * self.width, 4 * self.width)


#: Channels of the first layer of CG-SAMR; `paper` is that of pix2pixHD, whose generator it follows.
CGSAMR_WIDTHS: Final[dict[str, int]] = {"paper": 64, "compact": 16, "small": 8, "tiny": 4}
CgSamrForm = Literal["cgsamr", "ucgsamr", "pix2pix"]
CgSamrPrior = Literal["atlas", "subject", "tissue", "none"]
CgSamrUp = Literal["transposed", "resize"]


@dataclass(frozen=True)
class CgSamrConfig:
    """State the shape of a network that makes exams (`app.networks.cgsamr`).

    Attributes:
        form: CG-SAMR, its unpaired form, or the plain baseline.
        width: channels of the first layer.
        sequences: number of sequences that it makes.
        labels: number of lesion labels; the normal brain is one channel more of the lesion map.
        prior: what tells it of anatomy: the atlas at three slices, that and tissue probabilities at the same slices,
            tissue probabilities at one slice, or nothing. Tissue is that of the subject's own brain where it is known.
        norm: `batch` as in the paper, or `instance` for batches of one.
        stretch_out: whether each sequence has its own way up.
        confidence: whether the intermediate image is made, masked by its confidence, and fed back.
        up: how sides are doubled: `transposed` convolutions as in the paper, or `resize` by interpolation and a
            convolution, which leaves less of a checkerboard.
        skip: whether the way up sees the input again at full scale; the paper's does not.
        halvings: convolutions of stride 2 in the encoders, 2 to 4; the paper's have 4.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    form: CgSamrForm = "cgsamr"
    width: int = CGSAMR_WIDTHS["compact"]
    sequences: int = 4
    labels: int = 3
    prior: CgSamrPrior = "atlas"
    norm: Literal["batch", "instance"] = "batch"
    stretch_out: bool = True
    confidence: bool = True
    up: CgSamrUp = "transposed"
    skip: bool = False
    halvings: int = 4

    @property
    def widths(self) -> tuple[int, ...]:
        """Return channels per level of the encoder."""
        return tuple(self.width * 2**level for level in range(1 + self.halvings))

    @property
    def prior_channels(self) -> int:
        """Count the channels of the anatomical prior."""
        atlas, own = 3 * self.sequences, 3 * 3
        return {"atlas": atlas, "subject": atlas + own, "tissue": 3, "none": 0}[self.prior]

    @property
    def inputs(self) -> int:
        """Count the channels of the lesion map with the normal brain, and of the prior."""
        return 1 + self.labels + self.prior_channels


#: Channels per level of TISS-Net's networks, the finest first; `paper` has 125 million parameters in G and S, the paper
#: says 127 of networks whose widths it does not print.
TISSNET_WIDTHS: Final[dict[str, tuple[int, ...]]] = {"paper": (46, 92, 184, 368, 736), "compact": (16, 24, 32, 48, 64)}


@dataclass(frozen=True)
class TissNetConfig:
    """State the shape of a TISS-Net.

    Attributes:
        widths: channels per level, finest first, of the generator and the segmentor.
        sources: number of sequences that it is given.
        regions: 1 (whole tumour, as in the paper) or 3 (enhancing tumour, core, whole).
        cases: kinds of exam that it is told apart: 1 as in the paper; else one per target sequence, and perhaps one
            for exams that lack nothing.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    widths: tuple[int, ...] = TISSNET_WIDTHS["compact"]
    sources: int = 3
    regions: int = 3
    cases: int = 1


@dataclass(frozen=True)
class Segmenter3dConfig:
    """Shape of the 3D segmenter (`app.networks.unet3d.Segmenter3d`): channels per level."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    widths: tuple[int, ...] = SEGMENTER3D_WIDTHS


@dataclass(frozen=True)
class RefinerConfig:
    """Shape of a 3D refiner (`app.networks.refiner.Refiner`).

    Attributes:
        widths: channels per level of the encoders, the finest first; as many as there are compared.
        decoder_layers: 3 x 3 x 3 convolutions before the last.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    widths: tuple[int, ...] = REFINER_PRESETS[16]
    decoder_layers: int = 3
    network: Literal["refiner"] = "refiner"


@dataclass(frozen=True)
class EnhancerConfig:
    """Shape of a 3D enhancer (`app.networks.enhancer.Enhancer`).

    Attributes:
        widths: channels per level, the finest first.
        background: value of absent sequences.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    widths: tuple[int, ...] = SEGMENTER3D_WIDTHS
    background: float = -1.0
    network: Literal["enhancer"] = "enhancer"


#: Shapes of the generators that make any sequence.
GeneratorConfig = HfGanConfig | UNetConfig
