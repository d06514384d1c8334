"""What the tests of training share: a recipe for small phantoms, and its batches."""

from __future__ import annotations

from collections.abc import Sequence

from app.training.config import Recipe, load_recipe
from app.training.data.cache import CachedSubject
from app.training.data.slices import Source
from app.training.tasks.base import new_source

#: Canvases and slices that fit the phantoms of the fixture `training_data`.
SMALL = ["data.axial=[48,48]", "data.sagittal=[48,48]", "data.coronal=[48,48]", "data.min_brain_pixels=200",
         "schedule.validate_every=0", "data.held_out=0"]  # fmt: skip


def small(*changes: str, recipe: str = "smoke") -> Recipe:
    """A recipe whose step takes a fraction of a second, without the loss that needs a segmenter."""
    return load_recipe(recipe, [*SMALL, "losses.tversky=0", *changes])


def source_of(subjects: Sequence[CachedSubject], recipe: Recipe) -> Source:
    """The batches that a run of the recipe draws."""
    source = new_source(recipe, subjects, 0, ahead=False)
    assert isinstance(source, Source)
    return source
