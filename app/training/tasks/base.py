"""The base of all tasks, and where they are found: `NAME.py` here holds the task `NAME`.

A task owns its life: its recipe, where its batches come from, its networks and their steps, how they are validated,
and what an export writes of them. Nothing outside names a task.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.core.constants import TUMOUR_SEGMENTER, Modality
from app.core.errors import UsageError
from app.data.cases import Case
from app.networks.unet import Segmenter2d
from app.networks.unet3d import Segmenter3d
from app.preprocessing.normalization import BACKGROUND
from app.registry.checkpoints import load_segmenter2d, load_segmenter3d
from app.registry.lineage import Lineage, read_lineage
from app.registry.manifest import Entry, spec_as
from app.registry.spec import FirstStage, Kind, Segmenter2dSpec, Segmenter3dSpec
from app.training.checkpoint import State
from app.training.config import Recipe
from app.training.data.cache import CachedSubject
from app.training.distributed import Processes
from app.training.placement import choose_precision
from app.training.promotion.request import ExportRequest, check_no_host, check_no_specialist

R = TypeVar("R", bound=Recipe)
#: Moves one network's weights by its gradients; False where they were not finite and nothing moved.
Update = Callable[[str], bool]


@dataclass(frozen=True)
class TrainingContext(Generic[R]):
    """What a run gives to its task.

    Attributes:
        recipe: what the run follows.
        subjects: those that it trains on.
        data: folder that they come from.
        group: this process among all.
        segmenter: the frozen segmenter that may teach.
        stage_one: the generator whose volumes may be corrected.
        before: the state that the run goes on from, if it does.
        unpaired: subjects that lack the sequence which the others teach.
    """

    recipe: R
    subjects: Sequence[CachedSubject]
    data: Path
    group: Processes
    segmenter: Entry | None = None
    stage_one: Entry | None = None
    before: State | None = None
    unpaired: Sequence[CachedSubject] = ()

    @property
    def prefetch(self) -> bool:
        """Whether a thread draws the next batch: where the device computes beside the processor."""
        return self.group.device.type == "cuda"

    def teacher(self, loss: str | None) -> Segmenter2d | None:
        """Read the frozen segmenter that teaches through a loss; None where none does.

        Raises:
            UsageError: there is none, or it sees intensities on another scale than the recipe.
            WeightsError: its weights cannot be read, or it is no 2D segmenter.
        """
        return None if loss is None else load_segmenter2d(self._teaching_entry(loss, Segmenter2dSpec))

    def teacher3d(self, loss: str | None) -> Segmenter3d | None:
        """Read the frozen 3D segmenter that teaches through a loss; None where none does.

        Raises:
            UsageError: as `teacher`; or it is the one that measures exams.
            WeightsError: its weights cannot be read, or it is no 3D segmenter.
        """
        if loss is None:
            return None
        entry = self._teaching_entry(loss, Segmenter3dSpec)
        if entry.name == TUMOUR_SEGMENTER:
            raise UsageError(f"{entry.name!r} measures exams and must not teach; name another with --segmenter.")
        return load_segmenter3d(entry)

    def _teaching_entry(self, loss: str, kind: type[Segmenter2dSpec | Segmenter3dSpec]) -> Entry:
        if self.segmenter is None:
            raise UsageError(f"losses.{loss} needs a trained segmenter; name one with --segmenter, or set it to 0.")
        entry, own = self.segmenter, self.recipe.normalization.build()
        theirs = spec_as(entry, kind).normalization
        if theirs != own:
            raise UsageError(
                f"segmenter {entry.name!r} learned another scale of intensities ({theirs.scheme}) than the recipe's "
                f"({own.scheme}); train one with the same section `normalization`, and name it with --segmenter."
            )
        return entry


class Task(Generic[R]):
    """Base of all tasks.

    Attributes:
        recipe_type: class of its recipes.
        kind: what a manifest calls its result.
        needs_stage_one: whether it corrects what a generator made.
        takes_simulated: whether it can learn from exams of `simulate`. It cannot where it corrects a generator, draws
            slices by what of the tumour they show, or makes such exams itself.
        teacher_name: the frozen segmenter that teaches unless a user names another.
        export_hint: what the command `export` needs for it beside the usual.
        recipe, device: as a run has them.
        average: running mean of the weights of the first network; what is validated and exported.
        progress: share of the run that is over, 0 to 1; set before each step.
    """

    recipe_type: ClassVar[type[Recipe]]
    kind: ClassVar[Kind]
    needs_stage_one: ClassVar[bool] = False
    takes_simulated: ClassVar[bool] = True
    teacher_name: ClassVar[str] = "segmenter"
    export_hint: ClassVar[str] = ""

    average: nn.Module
    progress: float = 0.0

    def __init__(self, recipe: R, device: torch.device) -> None:
        self.recipe, self.device = recipe, device

    # ------------------------------------------------------------ before a run

    @classmethod
    def teaching_loss(cls, recipe: R) -> str | None:
        """Name the loss through which a frozen segmenter teaches; None where none does."""
        return None

    @classmethod
    def withheld(cls, recipe: R) -> Modality | None:
        """Name the sequence that further exams may lack; None where the task learns from complete ones alone."""
        return None

    @classmethod
    def check_start(cls, recipe: R, start: Entry | None) -> None:
        """Check that a new run may begin with these weights, or with random ones.

        Raises:
            UsageError: it may not.
        """

    @classmethod
    def choose(cls, recipe: R, subjects: list[CachedSubject]) -> list[CachedSubject]:
        """Choose the subjects that a recipe asks for, to train or to validate on.

        Raises:
            UsageError: there are none.
        """
        return subjects

    @classmethod
    def usable(cls, subjects: list[CachedSubject]) -> list[CachedSubject]:
        """Choose the subjects that the task can learn from.

        Raises:
            UsageError: they are too few.
        """
        return subjects

    @classmethod
    def open(cls, context: TrainingContext[R]) -> Self:
        """Build the untrained networks of a run; the recipe's seed decides their weights.

        Raises:
            UsageError: the task needs what the run does not give.
            WeightsError: weights of another model cannot be read.
        """
        torch.manual_seed(context.recipe.seed)
        return cls(context.recipe, context.group.device)

    def new_source(self, context: TrainingContext[R]) -> Any:
        """Build what batches come from: `at(step)` gives one, `sampler.count` says how many an epoch has.

        Raises:
            UsageError: no subject can be drawn from.
        """
        raise NotImplementedError

    @property
    def first_stage(self) -> FirstStage | None:
        """The generator whose volumes are corrected; None where the task corrects none."""
        return None

    def load_initial_weights(self, start: Entry) -> None:
        """Take the weights of a published model; errors as `read_weights`.

        Raises:
            UsageError: the model has another architecture than the recipe.
        """
        self._load(self.read_weights(start).state_dict(), start)

    @classmethod
    def read_weights(cls, entry: Entry) -> nn.Module:
        """Read the network of a published model that may be a beginning.

        Raises:
            WeightsError: it is of another kind, or its weights cannot be read.
        """
        raise NotImplementedError

    def _load(self, state: Mapping[str, Tensor], start: Entry) -> None:
        if start.spec.normalization.scheme != self.recipe.normalization.scheme:
            raise UsageError(
                f"model {start.name!r} has normalization.scheme = {start.spec.normalization.scheme!r}; go on so, or "
                "start from random."
            )
        try:
            for network in (next(iter(self.networks.values())), self.average):
                network.load_state_dict(state)
        except RuntimeError:
            raise UsageError(
                f"model {start.name!r} has another architecture than the recipe; start from random."
            ) from None

    # ------------------------------------------------------------ in a run

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that learn, in the order of their updates."""
        raise NotImplementedError

    @property
    def stage_progress(self) -> float:
        """Share of the present stage that is over, along which rates fall."""
        return self.progress

    def rate_factor(self, network: str) -> float:
        """Give the learning rate of a network as a multiple of the recipe's."""
        return 1.0

    @property
    def task_state(self) -> Mapping[str, float]:
        """Numbers beside the weights that must outlive an interruption; empty where there are none."""
        return MappingProxyType({})

    def restore_task_state(self, values: Mapping[str, float]) -> None:
        """Take over the numbers of an earlier run or of another process."""

    @property
    def precision(self) -> torch.dtype:
        """Precision in which the networks train."""
        return choose_precision(self.recipe.schedule.precision, self.device)

    def mixed_precision(self) -> torch.autocast:
        """Give the context in which networks run."""
        low = self.precision != torch.float32
        return torch.autocast(self.device.type, self.precision if low else torch.bfloat16, enabled=low)

    def step(self, source: Any, step: int, pieces: int, update: Update) -> dict[str, Tensor]:
        """Learn from one batch.

        Args:
            source: as `new_source` gave it.
            pieces: parts into which the batch is cut for the device's memory.
            update: moves the weights of a network by its gradients; False if they were not finite.

        Returns:
            The losses, unweighted, averaged over the batch.
        """
        raise NotImplementedError

    def pictures(self, sampler: Any) -> list[list[NDArray[np.float32]]]:
        """Draw results of the averaged network on one sample, as rows of equal images."""
        raise NotImplementedError

    def validate(self, cases: Sequence[Case], masks: Mapping[str, Path]) -> dict[str, float]:
        """Score the averaged network on complete subjects; the means of every metric.

        Args:
            masks: per subject, its segmentation.
        """
        raise NotImplementedError

    def selection_score(self, scores: Mapping[str, float]) -> float:
        """Give what the best checkpoint has most of."""
        return scores["ssim_brain"]

    # ------------------------------------------------------------ after a run

    @classmethod
    def check_export(cls, request: ExportRequest) -> None:
        """Check that a run's result can become the model that is asked for.

        Raises:
            UsageError: it cannot.
        """
        check_no_specialist(request)
        check_no_host(request)

    @classmethod
    def export_hosts(cls, request: ExportRequest) -> list[Entry]:
        """List the published models that the result is for."""
        return []

    @classmethod
    def export(cls, request: ExportRequest) -> Entry:
        """Write a run's result as a model, unless it is worse than the one before.

        Raises:
            UsageError: it is worse.
            WeightsError: the folder cannot be read.
            OutputError: it cannot be written to.
        """
        raise NotImplementedError


def task_names() -> list[str]:
    """List the tasks."""
    modules = sorted(m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return [name for name in modules if find_task(name) is not None]


def find_task(name: str) -> type[Task[Any]] | None:
    """Find the task that a module of this package offers as `TASK`, if there is one."""
    try:
        module = importlib.import_module(f"{__package__}.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"{__package__}.{name}":
            raise
        return None
    task: type[Task[Any]] | None = getattr(module, "TASK", None)
    return task


def task_of(recipe: Recipe) -> type[Task[Any]]:
    """Find the task of a recipe that is checked."""
    task = find_task(recipe.task)
    assert task is not None, recipe.task
    return task


# ------------------------------------------------------------ what tasks share


def add_to(totals: dict[str, Tensor], losses: Mapping[str, Tensor], share: float) -> None:
    """Add `share` of each loss to its total."""
    for name, value in losses.items():
        totals[name] = totals.get(name, torch.zeros_like(value)) + share * value.detach()


def masked(images: Tensor, brain: Tensor) -> Tensor:
    """Put background outside the brain, as every finished volume has it."""
    return images * brain + BACKGROUND * (1 - brain)


def lineage_of(entry: Entry) -> Lineage:
    """Give the trainings of a model and of all that it was made from."""
    return read_lineage(entry.folder).ancestry([entry.sha256])
