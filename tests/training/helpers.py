"""What the tests of training share: a recipe for small phantoms, and its batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from app.cli import main
from app.preprocessing.normalization import BACKGROUND
from app.registry.manifest import Entry
from app.training.config import load_recipe
from app.training.data.cache import CachedSubject
from app.training.data.patches import Patches
from app.training.data.sections import Section
from app.training.data.slices import Sampler, Source
from app.training.tasks.base import Task, Update
from app.training.tasks.segmentation2d import Segmentation2dRecipe
from app.training.tasks.synthesis_recipe import SynthesisRecipe

S = TypeVar("S", bound=Section)

#: Canvases and slices that fit the phantoms of the fixture `training_data`.
SMALL = ["data.axial=[48,48]", "data.sagittal=[48,48]", "data.coronal=[48,48]", "data.min_brain_pixels=200",
         "schedule.validate_every=0", "data.held_out=0"]  # fmt: skip

#: The plain network, whose ONNX is written in a moment, as options of a command line; `make train-smoke` goes the same
#: way with the generator.
PLAIN = [word for change in ("network.kind='unet'", "schedule.validate_every=0", "losses.tversky=0", "losses.feature=0",
                             "losses.cycle=0", "losses.adversarial=0", "losses.classification=0")
         for word in ("--set", change)]  # fmt: skip


#: `SMALL` as options of a command line, on axial slices alone.
SMALL_OPTIONS = [word for change in (*SMALL, "data.views=['axial']") for word in ("--set", change)]


def export(folder: Path, *more: str) -> int:
    """Export the run of the fixture `trained` as a user does."""
    return main(["export", str(folder / "run"), "--data", str(folder / "data"), "--weights", str(folder / "w"),
                 "--device", "cpu", "--model", "mine", *more])  # fmt: skip


def small(*changes: str, recipe: str = "smoke") -> SynthesisRecipe:
    """A recipe whose step takes a fraction of a second, without the loss that needs a segmenter."""
    loaded = load_recipe(recipe, [*SMALL, "losses.tversky=0", *changes])
    assert isinstance(loaded, SynthesisRecipe)
    return loaded


#: The plain network taught by L1 alone, one sequence a step: where it matters that a run trains, and not what.
QUICK = ["network.kind='unet'", "network.widths=[8,16]", "schedule.targets_per_batch=1",
         *(f"losses.{name}=0" for name in ("feature", "cycle", "adversarial", "classification", "ssim"))]  # fmt: skip


def quick(*changes: str) -> SynthesisRecipe:
    """The recipe whose step takes the least time."""
    return small(*QUICK, *changes)


def changed(section: S, **changes: Any) -> S:
    """A recipe's section with other values, checked again."""
    return type(section).model_validate({**dict(section), **changes})


def gradient_of(network: nn.Module) -> Tensor:
    """The gradient of all its weights as one vector, zeros where there is none."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in network.parameters()])


def moving(**optimizers: torch.optim.Optimizer) -> Update:
    """An update that moves the named networks only."""

    def update(name: str) -> bool:
        if name in optimizers:
            optimizers[name].step()
        return True

    return update


def by_heart(task: Task[Any], source: Any, *, steps: int, rate: float) -> list[dict[str, Tensor]]:
    """The losses of a task's first network over as many updates on one batch."""
    name, network = next(iter(task.networks.items()))
    update = moving(**{name: torch.optim.AdamW(network.parameters(), lr=rate)})
    return [task.step(source, 0, 1, update) for _ in range(steps)]


def source_of(subjects: Sequence[CachedSubject], recipe: SynthesisRecipe | Segmentation2dRecipe) -> Source:
    """The batches that a run of the recipe draws."""
    sampler = Sampler(subjects, recipe.data, BACKGROUND, seed=recipe.seed)
    return Source(sampler, recipe.schedule.batch_size, recipe.augmentation.shift)


def replaced_weights(entry: Entry) -> Entry:
    """The same model with other weights."""
    other = entry.files["torch"].model_copy(update={"sha256": "f" * 64})
    return replace(entry, files={**entry.files, "torch": other})


def patches_of(size: tuple[int, int, int] = (8, 8, 8), count: int = 2, seed: int = 0) -> Patches:
    """Random patches with random labels."""
    random = np.random.default_rng(seed)
    images = torch.from_numpy(random.normal(size=(count, 4, *size)).astype(np.float32))
    brain = torch.ones(count, 1, *size)
    labels = torch.from_numpy(random.integers(0, 4, (count, *size)))
    scale = torch.tensor([-2.0, 3.0]).expand(count, 4, 2)
    # What lies beside is the labels themselves, so that a test sees whether both move together.
    return Patches(images, brain, labels, torch.ones(count, dtype=torch.bool), scale, labels[:, None].float())
