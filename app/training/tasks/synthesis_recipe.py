"""Recipes of the task `synthesis`, and the generator that one asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from app.core.config import FusionName
from app.core.constants import MODALITIES, TUMOUR_TYPES, VIEWS, Confidence, Modality, View
from app.networks.architectures import (
    HF_GAN_PRESETS,
    UNET_WIDTHS,
    Activation,
    Gate,
    GeneratorConfig,
    HfGanConfig,
    Position,
    UNetConfig,
)
from app.networks.discriminator import DiscriminatorForm
from app.preprocessing.normalization import BACKGROUND
from app.preprocessing.target_intensity import IntensityPrior
from app.registry.spec import GeneratorSpec
from app.training.config import ContrastRecipe, LossRecipe, OptimizerRecipe, Recipe, TargetsSchedule
from app.training.data.sections import (
    Listed,
    MissingData,
    RecolouringRecipe,
    Section,
    SliceAugmentation,
    SliceData,
    check_rules,
)
from app.training.losses import CONFIDENCE_WEIGHTS, TverskyForm


class NetworkRecipe(Section):
    """Networks that are trained.

    Attributes:
        kind: `hybrid` (the hybrid-fusion generator) or `unet` (a plain one).
        preset: width of the hybrid-fusion generator: `compact`, `half` or `full`.
        view_code, position, activation, gate: further shape of the hybrid-fusion generator
            (`app.networks.architectures.HfGanConfig`).
        widths: channels per level of the plain one, each level at half the resolution.
        neighbours: slices on each side that the plain one sees beside the one in the middle.
        slices: that the plain one makes in one pass, the one in the middle and those nearest to it; odd.
        discriminator, discriminator_width: form of the discriminator (`app.networks.discriminator`), and channels of
            its first stage; used when an adversarial loss is.
        confidence: head that predicts the error of each pixel (`app.networks.confidence`).
        frozen: train that head alone on a network that stays as `--start` gave it: its images keep every bit.
        pretrained: the run goes on from a trained model, which `--start` must name.
        intensity_encoding: give the network its target's median brain intensity, the true one while it learns
            (`app.preprocessing.target_intensity.IntensityPrior`).
        intensity_prior: what takes its place in use: `fitted` on the training subjects, or as `published`.
    """

    kind: Literal["hybrid", "unet"] = "hybrid"
    preset: Literal["compact", "half", "full"] = "half"
    view_code: bool = True
    position: Position = "sinusoidal"
    activation: Activation = "gelu"
    gate: Gate = "channel"
    widths: Listed[tuple[int, ...]] = UNET_WIDTHS
    neighbours: int = 0
    slices: int = 1
    discriminator: DiscriminatorForm = "pix2pix"
    discriminator_width: int = 64
    confidence: Confidence = "none"
    frozen: bool = False
    pretrained: bool = False
    intensity_encoding: bool = False
    intensity_prior: Literal["fitted", "published"] = "fitted"

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        check_rules(
            {
                # More levels would halve a canvas that is no longer even; GroupNorm has eight groups.
                "network.widths must be 2 to 5 multiples of 8": 2 <= len(self.widths) <= 5
                and all(w > 0 and w % 8 == 0 for w in self.widths),
                "network.widths are those of network.kind = 'unet'; the hybrid generator has network.preset": (
                    self.kind == "unet" or self.widths == UNET_WIDTHS
                ),
                "network.view_code, position, activation and gate are those of network.kind = 'hybrid'": (
                    self.kind == "hybrid"
                    or (self.view_code, self.position, self.activation, self.gate)
                    == (True, "sinusoidal", "gelu", "channel")
                ),
                "network.neighbours must be 0 to 4, and more than 0 for network.kind = 'unet' alone": (
                    0 <= self.neighbours <= (4 if self.kind == "unet" else 0)
                ),
                "network.slices must be odd, and no more than network.neighbours lets it see": (
                    self.slices % 2 == 1 and 0 <= self.slices // 2 <= self.neighbours
                ),
                "network.discriminator_width must be a multiple of 4 for network.discriminator = 'published'": (
                    self.discriminator != "published" or self.discriminator_width % 4 == 0
                ),
                "network.frozen trains a confidence head alone: choose one with network.confidence": not self.frozen
                or self.confidence != "none",
                "network.discriminator_width must be at least 1": self.discriminator_width >= 1,
            }
        )
        return self


class SynthesisData(SliceData, MissingData):
    """Choice of slices, and of what is made of them.

    Attributes:
        targets: sequences that the network learns to make.
        availability: whether a whole `batch` shares what is missing, or each `sample` draws by itself: which sequence
            is made first, which others are missing, and which the second pass drops.
        tumour_types: types of the subjects to train on, from their names (`GLI`, `MET`, ...); none named takes all.
        withheld: the sequence that the exams of `--unpaired` lack; where there is one target, that is it.
        unpaired_share: share of a batch that shows such exams.
        close: whether each batch shows slices of a similar height, cut to the part of the canvas close to their brains.
            The exported model is run on such parts, which takes less time. Where no slice of a subject at
            that height shows the tumour, one without is drawn.
    """

    targets: Listed[tuple[Modality, ...]] = MODALITIES
    availability: Literal["batch", "sample"] = "batch"
    tumour_types: Listed[tuple[str, ...]] = ()
    withheld: Modality | None = None
    unpaired_share: float = 0.5
    close: bool = False

    @property
    def lacking(self) -> Modality | None:
        """The sequence that exams of `--unpaired` lack; None where the recipe does not say."""
        return self.withheld or (self.targets[0] if len(self.targets) == 1 else None)

    @model_validator(mode="after")
    def _check_targets(self) -> Self:
        once = 0 < len(self.targets) == len(set(self.targets))
        check_rules(
            {
                "data.withheld must be one of data.targets": self.withheld in (None, *self.targets),
                "data.unpaired_share must be above 0 and below 1": 0 < self.unpaired_share < 1,
                "data.targets must name one sequence or more, each once": once,
                f"data.tumour_types must be some of {', '.join(TUMOUR_TYPES)}": set(self.tumour_types)
                <= set(TUMOUR_TYPES),
            }
        )
        return self


class SynthesisAugmentation(SliceAugmentation, RecolouringRecipe):
    """Reach of the random variation of slices and of their tumours.

    Attributes:
        fade: probability of each input that its tumours stand out less than they do, not at all, or inversely.
        thick_exam: half of the exams look as if acquired in slices of 1 to so many voxels along one axis that all
            their inputs share; up to 1, none does.
        mask_error: half of the exams look as if masked by a brain whose rim is off by up to so many pixels.
        scanner: exams look as if other scanners had made them, the target with its inputs: deviation of the logarithm
            of a contrast curve's slopes at most; each exam has its own, from 0 on.
        sharpness: exams look finer or coarser, the target with its inputs: largest absolute logarithm of the factor on
            fine detail.
    """

    fade: float = 0.0
    thick_exam: float = 0.0
    mask_error: float = 0.0
    scanner: float = 0.0
    sharpness: float = 0.0

    @model_validator(mode="after")
    def _check_fade(self) -> Self:
        check_rules({"augmentation.fade is a probability": 0 <= self.fade <= 1})
        return self


class SynthesisLosses(LossRecipe):
    """Weights of the losses; the defaults are the papers'.

    Attributes:
        l1: mean absolute error.
        adversarial: binary cross-entropy against the discriminator.
        classification: cross-entropy of the discriminator's sequence head.
        discriminator, discriminator_class: the discriminator's own: binary cross-entropy, the mean of real and
            synthetic images', and cross-entropy of a real image's sequence.
        feature: one minus the cosine between the bottlenecks of both passes.
        cycle: mean absolute error of the second pass, which sees the first's result.
        ssim: one minus SSIM; `ssim_tissue` says whether over the `whole` brain, as equal halves of healthy and tumour
            (`dual`), or as the sum of both (`sum`).
        tversky: focal Tversky of the frozen segmenter's answer; `tversky_form` says whether the mean over the `tumour`
            classes, or the `published` sum over all four (`app.training.losses`).
        enhancing: how many times more the enhancing tumour of a T1c counts in L1.
        confidence: the predicted error against the real one; used with `network.confidence`.
        distilled: of exams that lack the sequence (`--unpaired`), mean absolute difference to what the averaged network
            makes of all that they have, as they are; distilled_feature: one minus the cosine between the features.
        pixels: whether l1 and cycle are means over the `brain`, or over `all` pixels.
        mask_background: whether a result gets its background before discriminator, segmenter and second pass see it,
            and l1 and cycle where they count all pixels.
    """

    l1: float = 10.0
    adversarial: float = 0.25
    classification: float = 0.25
    discriminator: float = 1.0
    discriminator_class: float = 1.0
    feature: float = 1.0
    cycle: float = 1.0
    ssim: float = 5.0
    ssim_tissue: Literal["whole", "dual", "sum"] = "dual"
    tversky: float = 5.0
    tversky_form: TverskyForm = "tumour"
    enhancing: float = 0.0
    confidence: float = 1.0
    distilled: float = 10.0
    distilled_feature: float = 1.0
    pixels: Literal["brain", "all"] = "brain"
    mask_background: bool = True

    @property
    def has_discriminator(self) -> bool:
        """Whether a discriminator learns beside the generator."""
        return self.adversarial > 0 or self.classification > 0


class SynthesisOptimizer(OptimizerRecipe):
    """Movement of the weights.

    Attributes:
        discriminator_rate: learning rate of the discriminator, as a multiple of the generator's.
    """

    discriminator_rate: float = 1.0

    @model_validator(mode="after")
    def _check_discriminator(self) -> Self:
        check_rules({"optimizer.discriminator_rate must not be negative": self.discriminator_rate >= 0})
        return self


class SynthesisSchedule(TargetsSchedule):
    """Length of the run, and what it does at once.

    Attributes:
        update: whether the networks move once per `batch`, by the sum over the sequences made, or once per `sequence`.
        validation_views: views that validation runs, fewer being faster.
        unpaired_from: share of the run before exams of `--unpaired` are seen: who teaches must know something.
    """

    scales_losses: ClassVar[bool] = True
    update: Literal["batch", "sequence"] = "batch"
    validation_views: Listed[tuple[View, ...]] = VIEWS
    unpaired_from: float = 0.3

    @model_validator(mode="after")
    def _check_unpaired(self) -> Self:
        check_rules({"schedule.unpaired_from must be from 0 to below 1": 0 <= self.unpaired_from < 1})
        return self


class SynthesisOutput(ContrastRecipe):
    """Use of the trained generator.

    Attributes:
        views: views that it is run on; all of `data.views` if none is named.
        fusion: how its views become one volume (`app.inference.slicewise.view_fusion`).
        flip_average: whether the exam is also run mirrored, and both are averaged.
        highlights: factor on what of a result is brighter than its median (`app.inference.postprocessing`).
        detail: factor on the fine detail of a result (`app.inference.fine_detail`).
    """

    views: Listed[tuple[View, ...]] = ()
    fusion: FusionName = "mean"
    flip_average: bool = False
    highlights: float = 1.0
    detail: float = 1.0

    @model_validator(mode="after")
    def _check_factors(self) -> Self:
        check_rules(
            {
                "output.highlights must be from 0 to 3": 0 <= self.highlights <= 3,
                "output.detail must be from 0 to 3": 0 <= self.detail <= 3,
            }
        )
        return self


class SynthesisRecipe(Recipe):
    """One training of a generator."""

    task: Literal["synthesis"] = "synthesis"
    network: NetworkRecipe = NetworkRecipe()
    data: SynthesisData = SynthesisData()
    augmentation: SynthesisAugmentation = SynthesisAugmentation()
    losses: SynthesisLosses = SynthesisLosses()
    optimizer: SynthesisOptimizer = SynthesisOptimizer()
    schedule: SynthesisSchedule
    output: SynthesisOutput = SynthesisOutput()

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        network, data, losses = self.network, self.data, self.losses
        has_head = network.confidence != "none"
        check_rules(
            {
                "schedule.targets_per_batch must be 1 to 4, and no more than data.targets names": 1
                <= self.schedule.targets_per_batch
                <= len(data.targets),
                "the discriminator needs a canvas of 32 pixels or more": not losses.has_discriminator
                or min(*data.axial, *data.sagittal, *data.coronal) >= 32,
                "losses.feature needs network.kind = 'hybrid', which has a bottleneck of its own": (
                    network.kind == "hybrid" or losses.feature == 0
                ),
                "network.neighbours needs losses.cycle = 0 and data.availability = 'batch'": (
                    network.neighbours == 0 or (losses.cycle == 0 and data.availability == "batch")
                ),
                "data.close needs network.kind = 'unet'": not data.close or network.kind == "unet",
                "network.confidence needs losses.confidence above 0": not has_head or losses.confidence > 0,
                "network.frozen leaves nothing to judge: set losses.adversarial and losses.classification to 0": (
                    not (network.frozen and losses.has_discriminator)
                ),
                "output.contrast is for normalization.scheme = 'volume': set it to 0": self.output.contrast == 0
                or self.normalization.scheme == "volume",
                "network.intensity_encoding needs normalization.scheme = 'range'": not network.intensity_encoding
                or self.normalization.scheme == "range",
                "augmentation.scanner needs normalization.scheme = 'volume': it brings volumes to other scores": (
                    self.augmentation.scanner == 0 or self.normalization.scheme == "volume"
                ),
                "output.fusion = 'confidence' needs network.confidence": self.output.fusion != "confidence" or has_head,
                "output.views must be among data.views": set(self.output.views) <= set(data.views),
            }
        )
        return self


def generator_config(recipe: SynthesisRecipe) -> GeneratorConfig:
    """Give the generator's shape that a recipe asks for.

    A confidence head begins with the first lambda.
    """
    network = recipe.network
    has_code = network.intensity_encoding
    scale = CONFIDENCE_WEIGHTS[0] if network.confidence == "bounded" else 1.0
    if network.kind == "unet":
        return UNetConfig(
            widths=network.widths,
            background=BACKGROUND,
            intensity_code=has_code,
            confidence=network.confidence,
            confidence_scale=scale,
            neighbours=network.neighbours,
            slices=network.slices,
        )
    return HfGanConfig(
        width=HF_GAN_PRESETS[network.preset],
        view_code=network.view_code,
        position=network.position,
        activation=network.activation,
        gate=network.gate,
        background=BACKGROUND,
        intensity_code=has_code,
        confidence=network.confidence,
        confidence_scale=scale,
    )


def generator_spec(
    recipe: SynthesisRecipe,
    architecture: GeneratorConfig,
    prior: IntensityPrior | None,
    views: Sequence[View] | None = None,
) -> GeneratorSpec:
    """Describe the generator that a recipe trains.

    Args:
        prior: of the targets' medians, for a network with intensity encoding.
        views: views that it is run on; those of the recipe if not given.
    """
    chosen = views or recipe.output.views or recipe.data.views
    return GeneratorSpec(
        architecture=architecture,
        normalization=recipe.normalization.build(),
        canvas=replace(recipe.data.canvas, close=architecture.multiple if recipe.data.close else 0),
        views=tuple(chosen),
        targets=recipe.data.targets,
        fusion=recipe.output.fusion,
        flip_average=recipe.output.flip_average,
        contrast=recipe.output.contrast,
        highlights=recipe.output.highlights,
        detail=recipe.output.detail,
        intensity_prior=prior,
    )
