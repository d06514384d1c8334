"""Recipes of the task `ds3net`, and the model that one describes."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from app.core.constants import MODALITIES, Modality, View
from app.networks.architectures import DS3NET_WIDTHS, Ds3NetConfig
from app.networks.ds3net.generator import CONTRASTED
from app.registry.spec import GeneratorSpec
from app.training.config import LossRecipe, OptimizerRecipe, Recipe, ScheduleRecipe
from app.training.data.core_slices import CoreSliceData
from app.training.data.sections import Listed, NormalizationRecipe, Section, SliceAugmentation, check_rules
from app.training.tasks.synthesis_recipe import SynthesisOutput

#: Layers of an encoder before its residual blocks; the last contrasted one must be among these.
_STEM = 12


class Ds3NetData(CoreSliceData):
    """Choice of slices.

    Attributes:
        targets: the one sequence that is made; the three others are its sources.
    """

    targets: Listed[tuple[Modality, ...]] = ("t1c",)
    views: Listed[tuple[View, ...]] = ("axial",)
    tumour_share: float = 1.0

    @property
    def target(self) -> Modality:
        """The sequence that is made."""
        return self.targets[0]

    @model_validator(mode="after")
    def _check_target(self) -> Self:
        check_rules(
            {
                "data.targets must name one sequence": len(self.targets) == 1,
                "the discriminators need a canvas of 32 pixels or more": min(
                    n for v in self.views for n in self.canvas.sizes[v]
                )
                >= 32,
            }
        )
        return self


class Ds3NetLosses(LossRecipe):
    """Weights of the losses (equations 4 and 7).

    Attributes:
        pixel: of the teacher: absolute error by difficulty (equation 2).
        image, feature: of the student: what it does not imitate of the teacher's images and features (5, 6).
        contrast, adversarial: of both (3, least squares).
        discriminator: of both discriminators.
    """

    pixel: float = 100.0
    image: float = 100.0
    feature: float = 1.0
    contrast: float = 1.0
    adversarial: float = 1.0
    discriminator: float = 1.0


class Ds3NetNetwork(Section):
    """Shape of the networks, and their two stages.

    Attributes:
        preset: width of the generators, of `app.networks.architectures.DS3NET_WIDTHS`.
        blocks: residual blocks of each encoder.
        discriminator_width: channels of the discriminators' first layer.
        patches: places of a layer that are contrasted; the paper does not say how many, CUT has 256.
        difficulty: whether the discriminators' opinions weigh pixels and patches in the second stage.
        teacher_share: share of the run in which the teacher learns alone; 1 is a run from paired exams only.
        stopped_early: share of that stage's own schedule that is left out at its end.
    """

    preset: Literal["paper", "compact"] = "compact"
    blocks: int = 9
    discriminator_width: int = 64
    patches: int = 256
    difficulty: bool = True
    teacher_share: float = 0.5
    stopped_early: float = 0.05

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        fewest = max(CONTRASTED) - _STEM + 1
        check_rules(
            {
                f"ds3net.blocks must be at least {fewest}, the last layer that is compared": self.blocks >= fewest,
                "ds3net.discriminator_width must be at least 1": self.discriminator_width >= 1,
                "ds3net.patches must be at least 2": self.patches >= 2,
                "ds3net.teacher_share must be above 0 and at most 1": 0 < self.teacher_share <= 1,
                "ds3net.stopped_early must be from 0 to below 1": 0 <= self.stopped_early < 1,
            }
        )
        return self


class Ds3NetOptimizer(OptimizerRecipe):
    """Movement of the weights; `learning_rate` is that of generators and projection heads.

    Attributes:
        discriminator_rate: learning rate of the discriminators, as a multiple.
        teacher_rate: learning rates of the teacher's networks in the second stage, as a multiple of their first ones.
    """

    name: Literal["adam", "adamw"] = "adamw"
    learning_rate: float = 6e-4
    reference_batch: int = 0
    clip_norm: float = 100.0
    decay: Literal["cosine", "linear"] = "linear"
    discriminator_rate: float = 0.5
    teacher_rate: float = 0.2

    @model_validator(mode="after")
    def _check_rates(self) -> Self:
        rates = (self.discriminator_rate, self.teacher_rate)
        check_rules({"optimizer.discriminator_rate and teacher_rate must not be negative": min(rates) >= 0})
        return self


class Ds3NetUse(SynthesisOutput):
    """Use of the trained student; images in [-1, 1] are never stretched."""

    contrast: float = 0.0


class Ds3NetRecipe(Recipe):
    """One training of a DS3-Net."""

    task: Literal["ds3net"] = "ds3net"
    data: Ds3NetData = Ds3NetData()
    normalization: NormalizationRecipe = NormalizationRecipe(scheme="range")
    augmentation: SliceAugmentation = SliceAugmentation()
    losses: Ds3NetLosses = Ds3NetLosses()
    optimizer: Ds3NetOptimizer = Ds3NetOptimizer()
    ds3net: Ds3NetNetwork = Ds3NetNetwork()
    schedule: ScheduleRecipe
    output: Ds3NetUse = Ds3NetUse()

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        check_rules(
            {
                "normalization.scheme must be 'range': DS3-Net sees images in [-1, 1]": (
                    self.normalization.scheme == "range"
                ),
                "schedule.batch_size must be even: half of it is paired": self.schedule.batch_size % 2 == 0,
                "output.contrast is for normalization.scheme = 'volume': set it to 0": self.output.contrast == 0,
                "output.fusion = 'confidence' is for networks with a confidence head": (
                    self.output.fusion != "confidence"
                ),
                "output.views must be among data.views": set(self.output.views) <= set(self.data.views),
            }
        )
        return self

    @property
    def architecture(self) -> Ds3NetConfig:
        """Shape of both generators."""
        return Ds3NetConfig(DS3NET_WIDTHS[self.ds3net.preset], self.ds3net.blocks, len(MODALITIES) - 1)

    @property
    def spec(self) -> GeneratorSpec:
        """Describe the student as a model."""
        output = self.output
        return GeneratorSpec(
            architecture=self.architecture,
            normalization=self.normalization.build(),
            canvas=self.data.canvas,
            views=output.views or self.data.views,
            targets=self.data.targets,
            fusion=output.fusion,
            flip_average=output.flip_average,
        )
