"""Recipes: everything that decides a training run, checked.

This module has the keys of every task; each task declares its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.core.constants import MODALITIES, VIEWS, Modality, View
from app.core.errors import UsageError
from app.preprocessing.normalization import BACKGROUND, BRASYN25_INTENSITIES, Intensity, Normalization, Scheme
from app.preprocessing.slices import MULTIPLE, Canvas
from app.training.recipe_files import mistake, read_recipe

T = TypeVar("T")
#: What a recipe trains that does not say it.
DEFAULT_TASK = "synthesis"
#: Lists of TOML and JSON are taken for tuples; what they hold is checked as strictly as everything else.
Listed = Annotated[T, Field(strict=False)]
Sides2d = Listed[tuple[int, int]]
Sides3d = Listed[tuple[int, int, int]]


class Section(BaseModel):
    """Base of a recipe's sections: frozen; unknown keys and values of another type are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def check_rules(rules: Mapping[str, bool]) -> None:
    """Check what no type says of a recipe.

    Args:
        rules: sentences, and whether they hold.

    Raises:
        ValueError: the first that does not hold.
    """
    for rule, holds in rules.items():
        if not holds:
            raise ValueError(rule)


class DataRecipe(Section):
    """Choice of subjects and of what is drawn from them.

    Attributes:
        tumour_share: probability that a slice shows the tumour, or a patch is centred on it, where the subject has any.
        held_out: number of subjects, drawn by the seed, that are kept for validation and never trained on.
    """

    tumour_share: float = 0.0
    held_out: int = 0

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        check_rules(
            {
                "data.tumour_share is a probability": 0 <= self.tumour_share <= 1,
                "data.held_out must not be negative": self.held_out >= 0,
            }
        )
        return self


class SliceData(DataRecipe):
    """Choice of slices.

    Attributes:
        views: views that slices are drawn from, and that the exported model is run on.
        axial, sagittal, coronal: the canvas: rows and columns per view, multiples of 16.
        centre: whether the canvas is centred on the `brain`, or on the `volume` with whatever surrounds it.
        min_brain_pixels: slices with fewer are left out.
        min_tumour_share: a slice shows the tumour when this share of its canvas is tumour.
        balance_types: draw every tumour type (from the subjects' names) equally often.
    """

    views: Listed[tuple[View, ...]] = VIEWS
    axial: Sides2d = (144, 176)
    sagittal: Sides2d = (176, 144)
    coronal: Sides2d = (144, 144)
    centre: Literal["brain", "volume"] = "brain"
    min_brain_pixels: int = 2000
    min_tumour_share: float = 0.001
    balance_types: bool = True

    @property
    def canvas(self) -> Canvas:
        """Window sizes per view."""
        return Canvas({"axial": self.axial, "sagittal": self.sagittal, "coronal": self.coronal}, self.centre)

    @model_validator(mode="after")
    def _check_slices(self) -> Self:
        sides = (*self.axial, *self.sagittal, *self.coronal)
        check_rules(
            {
                "data.views must name one view or more": bool(self.views),
                f"data.axial, sagittal and coronal must be multiples of {MULTIPLE}": all(
                    n > 0 and n % MULTIPLE == 0 for n in sides
                ),
            }
        )
        return self


class PatchData(DataRecipe):
    """Choice of 3D patches.

    Attributes:
        patch: sides in voxels of what the network sees at once, multiples of 16.
    """

    patch: Sides3d = (96, 96, 96)

    @model_validator(mode="after")
    def _check_patch(self) -> Self:
        whole = all(n > 0 and n % MULTIPLE == 0 for n in self.patch)
        check_rules({f"data.patch must be three multiples of {MULTIPLE}": whole})
        return self


class MissingData(Section):
    """Choice of the sequences that are missing.

    Attributes:
        single_missing: probability that only the target is missing; else one or two more sequences are.
    """

    single_missing: float = 1.0

    @model_validator(mode="after")
    def _check_missing(self) -> Self:
        check_rules({"data.single_missing is a probability": 0 <= self.single_missing <= 1})
        return self


class SequenceIntensity(Section):
    """Constants of one sequence, in the files' units.

    Attributes:
        mean, std: of the non-zero voxels of all training subjects, clipped.
        clip: the value that brighter voxels get.
    """

    mean: float
    std: float
    clip: float

    @model_validator(mode="after")
    def _check_constants(self) -> Self:
        check_rules({"normalization.intensities: std and clip must be above 0": min(self.std, self.clip) > 0})
        return self


class NormalizationRecipe(Section):
    """Scale of the intensities that the networks see (`app.preprocessing.normalization`).

    Attributes:
        scheme: `volume`, `range` or `dataset`.
        percentile: of the non-zero voxels, where `volume` and `range` clip.
        intensities: constants of `dataset`, per sequence; those of the 2025 BraSyn entry if not given. The key `file`
            names a file of `fit-normalization` instead.
    """

    scheme: Scheme = "volume"
    percentile: float = 99.5
    intensities: dict[Modality, SequenceIntensity] = Field(default_factory=dict)

    def build(self) -> Normalization:
        """Give the scheme that subjects are prepared by and models are run with."""
        if self.scheme != "dataset":
            return Normalization(self.scheme, background=BACKGROUND, percentile=self.percentile)
        own = {m: Intensity(i.mean, i.std, i.clip) for m, i in self.intensities.items()}
        return Normalization("dataset", background=BACKGROUND, intensities=own or BRASYN25_INTENSITIES)

    @model_validator(mode="after")
    def _check_normalization(self) -> Self:
        check_rules(
            {
                "normalization.intensities are for normalization.scheme = 'dataset'": self.scheme == "dataset"
                or not self.intensities,
                "normalization.intensities must name all four sequences": not self.intensities
                or set(self.intensities) == set(MODALITIES),
                "normalization.percentile must be above 0 and at most 100": 0 < self.percentile <= 100,
            }
        )
        return self


class AugmentationRecipe(Section):
    """Reach of the random variation; all zero leaves images alone.

    Geometry moves all sequences together, the rest varies each input by itself.

    Attributes:
        flip: probability of mirroring left and right (not in sagittal slices, which have no left).
        rotate, zoom: largest rotation in degrees and relative change of size.
        contrast, brightness: largest relative and absolute change of an input's normalized voxels.
        gamma: largest absolute log of the exponent on an input's voxels, mapped to [0, 1].
        bias: largest relative change by a smooth field.
        noise: largest deviation of Gaussian noise, in normalized units.
        thick: half of the inputs look as if acquired in slices of 1 to so many voxels; up to 1, none does.
    """

    flip: float = 0.5
    rotate: float = 0.0
    zoom: float = 0.0
    contrast: float = 0.1
    brightness: float = 0.1
    gamma: float = 0.0
    bias: float = 0.0
    noise: float = 0.0
    thick: float = 0.0

    @model_validator(mode="after")
    def _check_augmentation(self) -> Self:
        check_rules(
            {
                "no augmentation must be negative": all(value >= 0 for _, value in self),
                "augmentation.zoom and bias must be below 1": max(self.zoom, self.bias) < 1,
            }
        )
        return self


class SliceAugmentation(AugmentationRecipe):
    """Reach of the random variation of slices.

    Attributes:
        shift: largest translation in pixels, each way.
    """

    shift: int = 6


class RecolouringRecipe(Section):
    """Share of tumours that get another shade.

    Attributes:
        recolour_t1n, recolour_t2f: probability that the tumours of a T1n, of a T2-FLAIR, get any shade.
    """

    recolour_t1n: float = 0.0
    recolour_t2f: float = 0.0

    @model_validator(mode="after")
    def _check_recolouring(self) -> Self:
        shares = (self.recolour_t1n, self.recolour_t2f)
        check_rules({"augmentation.recolour_t1n and recolour_t2f are probabilities": all(0 <= s <= 1 for s in shares)})
        return self


class LossRecipe(Section):
    """Weights of losses; 0 leaves one out, with its computation."""

    @model_validator(mode="after")
    def _check_losses(self) -> Self:
        check_rules({"no loss may be negative": all(value >= 0 for _, value in self if not isinstance(value, str))})
        return self


class WindowRecipe(Section):
    """Windows of a 3D network in use.

    Attributes:
        overlap: least share of a window that the next one covers again.
    """

    overlap: float = 0.1

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        check_rules({"refinement.overlap must be from 0 to below 1": 0 <= self.overlap < 1})
        return self


class ContrastRecipe(Section):
    """Use of what was trained.

    Attributes:
        contrast: share of the way by which a result is brought to a scan's spread
            (`app.inference.postprocessing.stretch`).
    """

    contrast: float = 0.5

    @model_validator(mode="after")
    def _check_contrast(self) -> Self:
        check_rules({"output.contrast must be from 0 to 1": 0 <= self.contrast <= 1})
        return self


class OptimizerRecipe(Section):
    """Movement of the weights.

    Attributes:
        name: `adam` or `adamw`.
        learning_rate: peak at `reference_batch` slices per step, scaled linearly to the real number; a reference of 0
            does not scale.
        beta1, beta2: shares that the optimizer's means of gradients and of their squares keep.
        weight_decay: share of each weight that a step of the rate 1 takes away.
        clip_norm: largest norm of the gradient; larger ones are scaled down to it.
        ema: share that the averaged weights keep at each step.
    """

    name: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 5e-4
    reference_batch: int = 64
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 0.1
    ema: float = 0.999

    @model_validator(mode="after")
    def _check_optimizer(self) -> Self:
        check_rules(
            {
                "optimizer.beta1 and beta2 must be from 0 to below 1": all(
                    0 <= b < 1 for b in (self.beta1, self.beta2)
                ),
                "optimizer.learning_rate and clip_norm must be above 0": min(self.learning_rate, self.clip_norm) > 0,
                "optimizer.weight_decay must not be negative": self.weight_decay >= 0,
                "optimizer.ema must be from 0 to below 1": 0 <= self.ema < 1,
            }
        )
        return self


class ScheduleRecipe(Section):
    """Length of the run, and what it does at once.

    Attributes:
        precision: of the networks; `auto` is bfloat16 where the device computes in it natively. Losses are float32.
            `fp16` is for tasks that scale their losses.
        batch_size: slices or patches per step and process.
        steps, budget_minutes: the run ends, annealed, with whichever comes first; at least one is above 0.
        warmup: share of the run in which the rate rises.
        epoch_steps: steps between checkpoints, pictures and validations; 0 is one pass over the slices.
        validate_every: epochs between validations (the last always validates); 0 never does.
        validation_subjects: at most so many held-out subjects are used.
    """

    scales_losses: ClassVar[bool] = False
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    batch_size: int = 64
    steps: int = 0
    budget_minutes: float = 0.0
    warmup: float = 0.03
    epoch_steps: int = 0
    validate_every: int = 1
    validation_subjects: int = 6

    @property
    def images_per_step(self) -> int:
        """Slices or patches that one process makes or segments at each step."""
        return self.batch_size

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        counts = (self.steps, self.budget_minutes, self.epoch_steps, self.validate_every)
        check_rules(
            {
                "schedule.steps or schedule.budget_minutes must be above 0": self.steps > 0 or self.budget_minutes > 0,
                "schedule.steps, budget_minutes and epoch_steps must not be negative": min(counts) >= 0,
                "schedule.precision = 'fp16' is for synthesis": self.precision != "fp16" or self.scales_losses,
                "schedule.batch_size must be at least 1": self.batch_size >= 1,
                "schedule.warmup must be from 0 to below 1": 0 <= self.warmup < 1,
                "schedule.validation_subjects must be at least 1": self.validation_subjects >= 1,
            }
        )
        return self


class TargetsSchedule(ScheduleRecipe):
    """Length of a run that makes several sequences of each batch.

    Attributes:
        targets_per_batch: sequences made per batch: 4 makes each in turn, 1 draws one.
    """

    targets_per_batch: int = 4

    @property
    def images_per_step(self) -> int:
        """Slices or patches that one process makes at each step."""
        return self.batch_size * self.targets_per_batch


class Recipe(Section):
    """One training run, as every task has it; a task's recipe adds sections and keys.

    Attributes:
        task: what is trained (`app.training.tasks`).
        note: what the recipe is for.
        seed: decides every random number.
    """

    task: str
    note: str = ""
    seed: int = 0
    data: DataRecipe = DataRecipe()
    normalization: NormalizationRecipe = NormalizationRecipe()
    augmentation: AugmentationRecipe = AugmentationRecipe()
    optimizer: OptimizerRecipe = OptimizerRecipe()
    schedule: ScheduleRecipe

    @model_validator(mode="after")
    def _check_seed(self) -> Self:
        check_rules({"seed must not be negative": self.seed >= 0, "seed must be below 2**63": self.seed < 2**63})
        return self

    def to_json(self) -> dict[str, Any]:
        """Give all values in plain form, for checkpoints; `recipe_from_json` is the inverse."""
        return self.model_dump(mode="json")

    def changes(self) -> dict[str, Any]:
        """List the values that differ from the defaults of the task, for records.

        The task itself is not among them.
        """
        return self.model_dump(mode="json", exclude_defaults=True, exclude={"task"})


def load_recipe(name: str, changes: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe, with `section.key=value` changes applied.

    It is a file, or a built-in recipe by name. A file may say `extends = "NAME"`: it then changes that recipe (built
    in, or a path beside the file).

    Raises:
        UsageError: it does not exist, is no TOML, or has a key or value that cannot be.
    """
    return recipe_from_json(read_recipe(name, changes), f"recipe {name}")


def recipe_from_json(form: Mapping[str, Any], source: str = "the recipe") -> Recipe:
    """Check keys, types and values of a recipe's plain form.

    Args:
        source: what errors call it.

    Raises:
        UsageError: names the key, what is wrong, and the nearest known key.
    """
    from app.training.tasks.base import find_task, task_names

    name = form.get("task", DEFAULT_TASK)
    task = find_task(str(name))
    if task is None:
        raise UsageError(f"{source}: task = {name!r}; use one of {', '.join(task_names())}.")
    try:
        return task.recipe_type.model_validate({"task": name, "schedule": {}, **form})
    except ValidationError as error:
        raise UsageError(f"{source}: {mistake(error.errors()[0], task.recipe_type)}") from None
