from __future__ import annotations

import pytest

from app.core.errors import UsageError
from app.networks.architectures import UNetConfig
from app.training.config import load_recipe
from app.training.tasks.synthesis_recipe import generator_config, generator_spec


class TestRecipe:
    def test_the_head_is_trained_alone_by_default(self):
        recipe = load_recipe("confidence")
        assert (recipe.network.kind, recipe.network.confidence, recipe.network.frozen) == ("unet", "likelihood", True)

    @pytest.mark.parametrize(
        "changes,message",
        [
            (["losses.confidence=0"], "needs losses.confidence above 0"),
            (["network.confidence='none'"], "network.frozen trains a confidence head alone"),
            (["losses.adversarial=1"], "leaves nothing to judge"),
            (["network.confidence='none'", "network.frozen=false", "output.fusion='confidence'"],
             "output.fusion = 'confidence' needs network.confidence"),
        ],
    )  # fmt: skip
    def test_what_does_not_go_together(self, changes, message):
        with pytest.raises(UsageError, match=message):
            load_recipe("confidence", changes)


class TestPublishedParts:
    @pytest.mark.parametrize(
        "name,changes,message",
        [
            ("unet", ["network.gate='released'"], "gate are those of network.kind = 'hybrid'"),
            (
                "r1",
                ["network.discriminator_width=6"],
                "must be a multiple of 4 for network.discriminator = 'published'",
            ),
            ("r8", ["output.views=['coronal']"], "output.views must be among data.views"),
            ("segmenter", ["schedule.precision='fp16'"], "schedule.precision = 'fp16' is for synthesis"),
        ],
    )
    def test_what_does_not_go_together(self, name, changes, message):
        with pytest.raises(UsageError, match=message):
            load_recipe(name, changes)

    @pytest.mark.parametrize(
        "changes,views",
        [
            ([], ("axial", "sagittal")),
            (["output.views=['axial']"], ("axial",)),
            (["output.views=['sagittal']"], ("sagittal",)),
        ],
        ids=["R10", "R8A", "R8S"],
    )
    def test_one_training_is_evaluated_in_three_ways(self, changes, views):
        recipe = load_recipe("r8", changes)
        spec = generator_spec(recipe, generator_config(recipe), None)
        assert (spec.views, spec.fusion, spec.contrast) == (views, "mean", 0)


def test_a_u_net_has_its_usual_widths_unless_others_are_asked_for():
    assert generator_config(load_recipe("unet")) == UNetConfig()
    assert generator_config(load_recipe("unet", ["network.widths=[64,128]"])) == UNetConfig(widths=(64, 128))


class TestClose:
    @pytest.mark.parametrize("widths,multiple", [([32, 64, 128, 256], 8), ([32, 64], 2)])
    def test_the_model_is_run_as_it_learnt(self, widths, multiple):
        plain, close = (load_recipe("unet", [f"network.widths={widths}", *more]) for more in ([], ["data.close=true"]))
        assert generator_spec(plain, generator_config(plain), None).canvas.close == 0
        assert generator_spec(close, generator_config(close), None).canvas.close == multiple

    def test_a_hybrid_generator_does_not_learn_it(self):
        with pytest.raises(UsageError, match=r"data\.close needs network\.kind = 'unet'"):
            load_recipe("compact", ["data.close=true"])
