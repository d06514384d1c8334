"""What a recipe can teach: its network and losses, where its batches come from, and how what it learnt is scored."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.data.cases import Case
from app.inference.models import Model
from app.networks.confidence import ConfidenceHead
from app.networks.enhancer import Blinded
from app.networks.unet import Segmenter2d
from app.preprocessing.target_intensity import IntensityPredictor, MedianPredictor
from app.registry.checkpoints import load_generator, load_refiner, load_segmenter2d, load_segmenter3d
from app.registry.lineage import Lineage, read_lineage
from app.registry.manifest import Entry
from app.registry.spec import GeneratorSpec
from app.training.config import Recipe
from app.training.data.cache import CachedSubject
from app.training.data.patches import ExtraChannels, PatchSampler, PatchSource
from app.training.data.slices import Sampler, Source
from app.training.intensity_fit import IntensityCodes, fit_intensity
from app.training.tasks.enhancement import EnhancementTask
from app.training.tasks.refinement import RefinementTask
from app.training.tasks.segmentation2d import Segmentation2dTask
from app.training.tasks.segmentation3d import Segmentation3dTask
from app.training.tasks.synthesis import BACKGROUND, SynthesisTask
from app.training.validation import (
    candidate_model,
    candidate_refined_model,
    means,
    score_missing_sequences,
    score_segmenter2d,
    score_segmenter3d,
)

log = logging.getLogger(__name__)

OtherTask: TypeAlias = Segmentation2dTask | Segmentation3dTask | RefinementTask | EnhancementTask


def new_source(
    recipe: Recipe, subjects: Sequence[CachedSubject], rank: int, *, ahead: bool, beside: ExtraChannels | None = None
) -> Source | PatchSource:
    """What batches of slices, or of patches where the task sees volumes, come from.

    Args:
        rank: number of this process.
        ahead: whether a thread draws the next batch.
        beside: see `app.training.data.patches.PatchSampler`.

    Raises:
        UsageError: no subject can be drawn from.
    """
    if recipe.task in {"judging", "refinement", "enhancement"}:
        patches = PatchSampler(subjects, recipe.data, BACKGROUND, seed=recipe.seed, rank=rank, beside=beside)
        return PatchSource(patches, recipe.schedule.batch_size, ahead)
    slices = Sampler(subjects, recipe.data, BACKGROUND, seed=recipe.seed, rank=rank)
    augmentation = recipe.augmentation
    return Source(slices, recipe.schedule.batch_size, augmentation.shift, ahead, donors=augmentation.transplant > 0)


def new_task(
    recipe: Recipe, device: torch.device, segmenter: Entry | None, told: IntensityCodes | None
) -> SynthesisTask | OtherTask:
    """The untrained networks of a recipe with their losses.

    Args:
        segmenter: the frozen one, for the losses that need it.
        told: what a generator is told of its target's median.

    Raises:
        UsageError: a loss needs a segmenter, and there is none.
        WeightsError: its weights cannot be read.
    """
    if recipe.task == "segmentation":
        return Segmentation2dTask(recipe, device)
    if recipe.task == "judging":
        return Segmentation3dTask(recipe, device)
    if recipe.task == "enhancement":
        return EnhancementTask(recipe, device)
    teacher: Segmenter2d | None = None
    if (loss := taught_by(recipe)) is not None:
        if segmenter is None:
            raise UsageError(f"losses.{loss} needs a trained segmenter; name one with --segmenter, or set it to 0.")
        teacher = load_segmenter2d(segmenter)
    if recipe.task == "refinement":
        return RefinementTask(recipe, device, teacher)
    return SynthesisTask(recipe, device, teacher, told)


def taught_by(recipe: Recipe) -> str | None:
    """Name of the loss through which a frozen segmenter teaches; None where none does."""
    loss = {"synthesis": "tversky", "refinement": "dice"}.get(recipe.task)
    return loss if loss is not None and getattr(recipe.losses, loss) > 0 else None


def load_initial_weights(task: SynthesisTask | OtherTask, start: Entry) -> None:
    """Give a task the weights of a published model.

    Raises:
        UsageError: the model has another architecture than the recipe, or does not make what a frozen one shall.
        WeightsError: the model is of another kind, or its weights cannot be read.
    """
    ((name, network),) = ((n, w) for n, w in task.networks.items() if n in _LOADERS)
    known = start.spec.targets if isinstance(start.spec, GeneratorSpec) else MODALITIES
    unknown = [m for m in task.recipe.data.makes if m not in known]
    if task.recipe.network.frozen and unknown:
        raise UsageError(
            f"model {start.name!r} makes {', '.join(known)} and not {', '.join(unknown)}; say so with --set "
            "data.makes=[...], and --set schedule.targets=N for as many of them."
        )
    loaded = _LOADERS[name](start)
    state = loaded.state_dict()
    if isinstance(task, SynthesisTask):
        state = _with_head(state, task, loaded.confidence, start.name)
    try:
        network.load_state_dict(state)
        task.average.load_state_dict(state)
    except RuntimeError:
        raise UsageError(f"model {start.name!r} has another architecture than the recipe; start from random.") from None


def lineage_of(entry: Entry) -> Lineage:
    """Give the trainings of a model and of all that it was made from, as its folder knows them."""
    return read_lineage(entry.folder).ancestry([entry.sha256])


#: By the name that a task gives to what it teaches: how a model that may be its beginning is read.
_LOADERS: dict[str, Callable[[Entry], Any]] = {
    "generator": load_generator,
    "segmenter": load_segmenter2d,
    "judge": load_segmenter3d,
    "refiner": load_refiner,
    "enhancer": load_refiner,
}


def _with_head(
    state: dict[str, torch.Tensor], task: SynthesisTask, head: ConfidenceHead | None, name: str
) -> dict[str, torch.Tensor]:
    """A generator's weights with as much of a confidence head as the recipe asks for.

    Raises:
        UsageError: the model has a head of another kind, and the recipe trains more than the head.
    """
    wanted = task.generator.confidence
    bare = {k: v for k, v in state.items() if not k.startswith("confidence.")}
    if wanted is None:
        return bare
    another = head is not None and wanted.kind != head.kind
    if head is None or (another and task.recipe.network.frozen):
        # A head may be new: it begins at random, on what is there.
        if another:
            log.info("The confidence head of %s is of another kind and makes room for a new one.", name)
        own = task.generator.state_dict()
        return bare | {k: v for k, v in own.items() if k.startswith("confidence.")}
    if another:
        raise UsageError(f"model {name!r} has a confidence head of the kind {head.kind!r}; "
                         "set network.confidence to that, or start from one without.")  # fmt: skip
    if task.memory:
        task.remember({**task.memory, "lambda": head.scale})
    return state


def validate_generator(
    task: SynthesisTask,
    training: Sequence[CachedSubject],
    cases: Sequence[Case],
    masks: Mapping[str, Path],
    prior: MedianPredictor | None,
) -> dict[str, float]:
    """Mean scores of the averaged generator on complete subjects, each sequence dropped in turn.

    Args:
        training: the subjects that brightness is predicted from.
        prior: what it is told of the target's median.
    """
    recipe = task.recipe
    predictor = IntensityPredictor.from_json(fit_intensity([s.intensities for s in training]))
    views = [v for v in recipe.schedule.validation_views if v in recipe.data.views] or list(recipe.data.views)
    model = candidate_model(task.average, recipe, views, predictor, task.device, prior)
    return means(score_missing_sequences(model, cases, masks))


def validate(
    task: OtherTask, cases: Sequence[Case], masks: Mapping[str, Path], stage_one: Model | None
) -> dict[str, float]:
    """Mean scores of the averaged network of any other task on complete subjects.

    Args:
        stage_one: whose volumes a refiner corrects.
    """
    if isinstance(task, Segmentation2dTask):
        return means(score_segmenter2d(copy.deepcopy(task.average), cases, masks, task.recipe.data, task.device))
    if isinstance(task, Segmentation3dTask):
        return means(score_segmenter3d(task.average, cases, masks, task.recipe, task.device))
    if isinstance(task, EnhancementTask):
        # Whatever makes the T1c that it is to enhance, this is what it knows.
        return means(score_segmenter3d(Blinded(task.average), cases, masks, task.recipe, task.device))
    assert stage_one is not None
    return means(score_missing_sequences(candidate_refined_model(task.average, task.recipe, stage_one), cases, masks))
