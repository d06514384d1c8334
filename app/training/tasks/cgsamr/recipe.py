"""Recipes of the tasks `cgsamr` and `ucgsamr`, and the models that they describe."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from app.core.constants import CLASSES, MODALITIES, View
from app.networks.architectures import CGSAMR_WIDTHS, CgSamrConfig, CgSamrPrior, CgSamrUp
from app.registry.spec import CgSamrSpec
from app.training.config import LossRecipe, OptimizerRecipe, Recipe, ScheduleRecipe
from app.training.data.sections import Listed, NormalizationRecipe, Section, SliceAugmentation, SliceData, check_rules


class OutlineData(SliceData):
    """Choice of axial slices, and of the atlas that goes with them.

    Attributes:
        atlas: file of `python -m app atlas`; if empty, one is made of the training subjects and kept in the cache.
        atlas_voxel: edge in millimetres of the voxels that it is averaged to; 0 leaves those of the subjects.
    """

    atlas: str = ""
    atlas_voxel: float = 0.0
    views: Listed[tuple[View, ...]] = ("axial",)
    tumour_share: float = 0.75

    @model_validator(mode="after")
    def _check_outlines(self) -> Self:
        check_rules(
            {
                "data.views must be ['axial']: the atlas is cut along it": self.views == ("axial",),
                "data.atlas_voxel must not be negative": self.atlas_voxel >= 0,
                "the discriminators need data.axial of 64 pixels or more": min(self.axial) >= 64,
            }
        )
        return self


class SimulatorNetwork(Section):
    """Shape of the networks.

    Attributes:
        preset: width of the generator, of `app.networks.architectures.CGSAMR_WIDTHS`.
        norm: normalization of the generator.
        stretch_out, confidence, up, halvings: see `app.networks.architectures.CgSamrConfig`.
        discriminator_width: channels of the discriminators' first layer.
    """

    preset: Literal["paper", "compact", "small", "tiny"] = "compact"
    norm: Literal["batch", "instance"] = "batch"
    stretch_out: bool = True
    confidence: bool = True
    up: CgSamrUp = "transposed"
    halvings: int = 4
    discriminator_width: int = 16

    @model_validator(mode="after")
    def _check_widths(self) -> Self:
        check_rules(
            {
                "cgsamr.discriminator_width must be at least 1": self.discriminator_width >= 1,
                "cgsamr.halvings must be 2 to 4": 2 <= self.halvings <= 4,
            }
        )
        return self


class PairedNetwork(SimulatorNetwork):
    """Shape of the networks of paired training.

    Attributes:
        form: CG-SAMR, or the plain baseline.
        prior: `atlas` as in the paper, `subject` with the tissue of the subject's own brain beside it, or `none`.
        skip: see `app.networks.architectures.CgSamrConfig`.
        labelwise: whether background, normal brain and lesion have discriminators of their own.
        scales: at how many scales discriminators look.
        segmenter_widths: channels per level of the U-Net that finds the lesion's shape.
    """

    form: Literal["cgsamr", "pix2pix"] = "cgsamr"
    prior: Literal["atlas", "subject", "none"] = "atlas"
    skip: bool = False
    labelwise: bool = True
    scales: int = 2
    segmenter_widths: Listed[tuple[int, ...]] = (16, 32, 64)

    @model_validator(mode="after")
    def _check_paired(self) -> Self:
        widths = self.segmenter_widths
        check_rules(
            {
                "cgsamr.scales must be 1 or 2": self.scales in (1, 2),
                "cgsamr.segmenter_widths must be 1 to 4 multiples of 8": 1 <= len(widths) <= 4
                and all(w > 0 and w % 8 == 0 for w in widths),
            }
        )
        return self


class UnpairedNetwork(SimulatorNetwork):
    """Shape of the networks of unpaired training.

    Attributes:
        outline_noise: deviation of the noise in the outlines that the discriminator sees, real ones and found ones
            (Sonderby et al., ICLR 2017); the paper has none. Without it soft edges alone betray what was found.
    """

    norm: Literal["batch", "instance"] = "instance"
    outline_noise: float = 0.0

    @model_validator(mode="after")
    def _check_unpaired(self) -> Self:
        check_rules({"cgsamr.outline_noise must not be negative": self.outline_noise >= 0})
        return self


class PairedLosses(LossRecipe):
    """Weights of the losses (equation 6).

    Attributes:
        adversarial: equation 2.
        feature: feature matching (3).
        shape: lesion shape consistency (5).
        confidence: confidence map (1).
        l1: mean absolute error of the whole exam; the paper has none.
        discriminator: of the discriminators' own loss.
    """

    adversarial: float = 1.0
    feature: float = 5.0
    shape: float = 1.0
    confidence: float = 1.0
    l1: float = 0.0
    discriminator: float = 1.0

    @property
    def looks(self) -> bool:
        """Whether discriminators take part."""
        return self.adversarial > 0 or self.feature > 0


class UnpairedLosses(LossRecipe):
    """Weights of the streams (equation 10, where all are 1).

    Attributes:
        reconstruction: equation 7; adversarial: 8; cycle: 9.
        confidence: of the confidence map in reconstruction and cycle.
        darkness: of what is made as dark as the background inside the brain; the paper has none.
        tissue: of each tissue's mean brightness in a made slice, against the atlas's; the paper has none.
        discriminator: of the discriminators' own loss.
    """

    reconstruction: float = 1.0
    adversarial: float = 1.0
    cycle: float = 1.0
    confidence: float = 1.0
    darkness: float = 0.0
    tissue: float = 0.0
    discriminator: float = 1.0


class SimulatorOptimizer(OptimizerRecipe):
    """Movement of the weights; moments as in pix2pixHD, since the paper does not print them.

    Attributes:
        discriminator_rate: learning rate of the discriminators, as a multiple.
    """

    discriminator_rate: float = 1.0
    learning_rate: float = 2e-4
    reference_batch: int = 0
    beta1: float = 0.5
    clip_norm: float = 100.0
    ema: float = 0.99
    decay: Literal["cosine", "linear"] = "linear"
    constant_share: float = 0.5

    @model_validator(mode="after")
    def _check_rate(self) -> Self:
        check_rules({"optimizer.discriminator_rate must not be negative": self.discriminator_rate >= 0})
        return self


class OutlineRecipe(Recipe):
    """What both trainings share."""

    data: OutlineData = OutlineData()
    normalization: NormalizationRecipe = NormalizationRecipe(scheme="range")
    augmentation: SliceAugmentation = SliceAugmentation(contrast=0.0, brightness=0.0)
    optimizer: SimulatorOptimizer = SimulatorOptimizer()
    schedule: ScheduleRecipe

    @model_validator(mode="after")
    def _check_scale(self) -> Self:
        augmentation = self.augmentation
        varied = (augmentation.contrast, augmentation.brightness, augmentation.gamma, augmentation.bias,
                  augmentation.noise, augmentation.thick)  # fmt: skip
        check_rules(
            {
                "normalization.scheme must be 'range': the network makes images in [-1, 1]": (
                    self.normalization.scheme == "range"
                ),
                "augmentation of brightness must be 0: the exams are what is made": max(varied) == 0,
            }
        )
        return self

    @property
    def architecture(self) -> CgSamrConfig:
        """Shape of the network that is published."""
        raise NotImplementedError

    @property
    def prior(self) -> CgSamrPrior:
        """The anatomy that the network is told."""
        return self.architecture.prior

    @property
    def spec(self) -> CgSamrSpec:
        """Describe the model that is trained."""
        return CgSamrSpec(
            architecture=self.architecture, normalization=self.normalization.build(), canvas=self.data.canvas
        )


class CgSamrRecipe(OutlineRecipe):
    """One training of a CG-SAMR."""

    task: Literal["cgsamr"] = "cgsamr"
    losses: PairedLosses = PairedLosses()
    cgsamr: PairedNetwork = PairedNetwork()

    @property
    def architecture(self) -> CgSamrConfig:
        """Shape of the generator."""
        shape, plain = self.cgsamr, self.cgsamr.form == "pix2pix"
        return CgSamrConfig(
            form=shape.form,
            width=CGSAMR_WIDTHS[shape.preset],
            sequences=len(MODALITIES),
            labels=CLASSES - 1,
            prior=shape.prior,
            norm=shape.norm,
            stretch_out=shape.stretch_out and not plain,
            confidence=shape.confidence and not plain,
            up=shape.up,
            skip=shape.skip and not plain,
            halvings=shape.halvings,
        )


class UcgSamrRecipe(OutlineRecipe):
    """One training of a UCG-SAMR."""

    task: Literal["ucgsamr"] = "ucgsamr"
    losses: UnpairedLosses = UnpairedLosses()
    cgsamr: UnpairedNetwork = UnpairedNetwork()

    @property
    def architecture(self) -> CgSamrConfig:
        """Shape of both encoders and decoders."""
        shape = self.cgsamr
        return CgSamrConfig(
            "ucgsamr", CGSAMR_WIDTHS[shape.preset], len(MODALITIES), CLASSES - 1, "tissue", shape.norm,
            shape.stretch_out, shape.confidence, shape.up,
            halvings=shape.halvings,
        )  # fmt: skip
