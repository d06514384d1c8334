"""The recipes of the BraSyn 2024 winner against its text."""

from __future__ import annotations

from app.core.constants import MODALITIES
from app.networks.refiner import Refiner
from app.training.config import load_recipe
from app.training.tasks.refinement import refiner_config


def test_the_first_stage_is_appendix_a_1_and_section_3_1():
    recipe = load_recipe("kaist24")
    losses = recipe.losses
    # Equation 6: alpha to epsilon, and zeta and eta as one weight of two SSIM losses.
    weights = [losses.l1, losses.feature, losses.cycle, losses.adversarial, losses.classification]
    assert weights == [10, 1, 1, 0.25, 0.25]
    assert (losses.ssim, losses.ssim_tissue, losses.tversky) == (5, "sum", 0)
    assert recipe.normalization.build().scheme == "range"
    assert recipe.network.intensity_encoding
    assert not recipe.network.view_code
    assert (recipe.data.views, recipe.data.axial, recipe.data.min_brain_pixels) == (("axial",), (240, 240), 2000)
    assert recipe.schedule.batch_size == 24
    assert recipe.schedule.steps == round(20 * 158867 / 24)
    assert all(v == 0 for v in recipe.augmentation.model_dump().values())


def test_the_second_stage_is_appendix_a_2_and_section_3_1():
    recipe = load_recipe("kaist24_refiner")
    # Equation 7: both lambdas 1.0.
    assert (recipe.losses.ssim, recipe.losses.dice, recipe.losses.l1) == (1.0, 1.0, 0.0)
    assert (recipe.data.patch, recipe.schedule.batch_size) == ((128, 128, 128), 4)
    assert set(refiner_config(recipe).widths) == {64}
    assert all(v == 0 for v in recipe.augmentation.model_dump().values())


def test_the_trained_one_has_the_same_losses_and_parts():
    recipe = load_recipe("refiner")
    assert (recipe.losses.ssim, recipe.losses.dice, recipe.losses.l1) == (1.0, 1.0, 0.0)
    assert len(Refiner(refiner_config(recipe)).encoders) == len(MODALITIES)
