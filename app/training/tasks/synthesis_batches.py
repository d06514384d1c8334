"""What a step of the task `synthesis` learns from, and what its network sees of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from app.preprocessing.normalization import BACKGROUND
from app.preprocessing.slices import CLOSE_RIM, close_span, neighbour_offsets
from app.training.data.drawn_alike import DrawnAlike
from app.training.data.slices import Batch, together
from app.training.data.variation.augmentation import fade_tumours, recolour_slices, vary_geometry, vary_intensities
from app.training.data.variation.scanned import misjudge_brain, thicken_exams
from app.training.data.variation.scanners import change_scanners, change_sharpness
from app.training.tasks.synthesis_recipe import SynthesisAugmentation


def vary_slices(
    batch: Batch, recipe: SynthesisAugmentation, neighbours: int, random: np.random.Generator, slices: int = 1
) -> tuple[Batch, Tensor]:
    """Vary the slices of a batch.

    Args:
        batch: each slice followed by its neighbours.
        neighbours: slices on each side of each.
        slices: that one pass makes.

    Returns:
        The slices that are made, those of a pass together, and what the network sees: B x 4 (1 + 2 neighbours) x H x W.
    """
    count = len(neighbour_offsets(neighbours))
    own = random if count == 1 else DrawnAlike(random, count)
    batch = vary_geometry(batch, recipe, own, BACKGROUND)
    if recipe.scanner > 0:
        batch = change_scanners(batch, recipe.scanner, own, BACKGROUND)
    if recipe.sharpness > 0:
        batch = change_sharpness(batch, recipe.sharpness, own, BACKGROUND)
    shown = batch
    if recipe.mask_error > 0:
        batch, shown = misjudge_brain(batch, recipe.mask_error, own, BACKGROUND)
    if recipe.fade > 0:
        shown = replace(shown, images=fade_tumours(shown, recipe.fade, own))
    if max(recipe.recolour_t1n, recipe.recolour_t2f) > 0:
        shown = replace(shown, images=recolour_slices(shown, recipe, own, BACKGROUND))
    if recipe.thick_exam > 1:
        shown = replace(shown, images=thicken_exams(shown, recipe.thick_exam, own, BACKGROUND))
    return batch.every(count, slices), together(vary_intensities(shown, recipe, own, BACKGROUND), count)


def cut_close(batch: Batch, seen: Tensor, multiple: int, random: np.random.Generator) -> tuple[Batch, Tensor]:
    """Cut a batch to the part of the canvas close to its brains, with a rim that is drawn.

    Args:
        batch: B slices; seen: what the network sees of them, of the same rows and columns.
        multiple: of rows and columns that the network takes.
        random: draws the rim, of up to twice `CLOSE_RIM` pixels.
    """
    brain = (batch.brain > 0).any(0)[0]
    rim = int(random.integers(2 * CLOSE_RIM + 1))
    rows, columns = (close_span(brain.any(axis).cpu().numpy(), multiple, rim) for axis in (1, 0))
    return batch.cut(rows, columns), seen[:, :, rows, columns]
