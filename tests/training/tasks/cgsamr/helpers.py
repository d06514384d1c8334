"""What the tests of CG-SAMR's trainings share: recipes for small phantoms, and runs of a task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from app.training.config import load_recipe
from app.training.data.cache import CachedSubject
from app.training.distributed import Processes
from app.training.tasks.base import Task, TrainingContext, task_of

SMALL = [
    "data.axial=[64,64]",
    "data.min_brain_pixels=200",
    "data.tumour_share=1",
    "cgsamr.preset='tiny'",
    "cgsamr.discriminator_width=2",
    "augmentation.shift=0",
    "augmentation.flip=0",
    "schedule.batch_size=2",
    "schedule.epoch_steps=1000",
    "schedule.validate_every=0",
]


def opened(
    subjects: Sequence[CachedSubject], data: Path, *changes: str, recipe: str = "cgsamr_compact"
) -> tuple[Task[Any], Any]:
    """A task with its atlas, and its batches."""
    loaded = load_recipe(recipe, [*SMALL, *changes])
    context = TrainingContext(loaded, subjects, data, Processes(0, 1, torch.device("cpu")))
    task = task_of(loaded).open(context)
    return task, task.new_source(context)
