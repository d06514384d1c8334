from __future__ import annotations

import pytest

from app.core.errors import UsageError
from app.networks.architectures import UNetConfig
from app.training.config import load_recipe
from app.training.tasks.synthesis_recipe import generator_config


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


def test_a_u_net_has_its_usual_widths_unless_others_are_asked_for():
    assert generator_config(load_recipe("unet")) == UNetConfig()
    assert generator_config(load_recipe("unet", ["network.widths=[64,128]"])) == UNetConfig(widths=(64, 128))
