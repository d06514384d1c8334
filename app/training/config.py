"""Recipes: everything that decides a training run, checked.

This module has the keys of every task; each task declares its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self

from pydantic import ValidationError, model_validator

from app.core.errors import UsageError
from app.training.data.sections import AugmentationRecipe, DataRecipe, NormalizationRecipe, Section, check_rules
from app.training.recipe_files import mistake, read_recipe

#: What a recipe trains that does not say it.
DEFAULT_TASK = "synthesis"


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
        decay: how the rate falls to 0: one cosine, or a straight line.
        constant_share: share of the run before it falls.
    """

    name: Literal["adam", "adamw"] = "adam"
    learning_rate: float = 5e-4
    reference_batch: int = 64
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 0.1
    ema: float = 0.999
    decay: Literal["cosine", "linear"] = "cosine"
    constant_share: float = 0.0

    @model_validator(mode="after")
    def _check_optimizer(self) -> Self:
        check_rules(
            {
                "optimizer.beta1 and beta2 must be from 0 to below 1": all(
                    0 <= b < 1 for b in (self.beta1, self.beta2)
                ),
                "optimizer.learning_rate and clip_norm must be above 0": min(self.learning_rate, self.clip_norm) > 0,
                "optimizer.weight_decay must not be negative": self.weight_decay >= 0,
                "optimizer.ema and constant_share must be from 0 to below 1": all(
                    0 <= share < 1 for share in (self.ema, self.constant_share)
                ),
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
