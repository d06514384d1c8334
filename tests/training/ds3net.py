"""What the tests of DS3-Net share: a recipe for small phantoms, and its batches."""

from __future__ import annotations

from collections.abc import Sequence

from app.training.data.cache import CachedSubject
from app.training.data.unpaired import PairedSource
from app.training.tasks.ds3net_recipe import Ds3NetRecipe

SMALL_DS3NET = [
    "data.axial=[32,48]",
    "data.min_brain_pixels=200",
    "data.tumour_share=1",
    "ds3net.discriminator_width=4",
    "ds3net.patches=16",
    "augmentation.flip=0",
    "augmentation.contrast=0",
    "augmentation.brightness=0",
    "augmentation.shift=0",
    "schedule.batch_size=4",
    "schedule.epoch_steps=1000",
    "schedule.validate_every=0",
]


def paired_source(
    recipe: Ds3NetRecipe, paired: Sequence[CachedSubject], unpaired: Sequence[CachedSubject]
) -> PairedSource:
    """The batches that a run of the recipe draws."""
    return PairedSource(paired, unpaired, recipe.data, recipe.schedule.batch_size, seed=recipe.seed)
