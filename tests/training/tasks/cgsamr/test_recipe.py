from __future__ import annotations

import pytest

from app.core.errors import UsageError
from app.training.config import load_recipe


@pytest.mark.parametrize("name", ["cgsamr", "cgsamr_compact", "ucgsamr", "ucgsamr_compact"])
def test_recipes_are_valid(name):
    recipe = load_recipe(name)
    assert recipe.task == name.partition("_")[0]
    assert recipe.spec.architecture.form == recipe.task
    assert recipe.spec.normalization.scheme == "range"


def test_the_published_paired_run():
    recipe = load_recipe("cgsamr")
    weights = recipe.losses
    assert (weights.adversarial, weights.feature, weights.shape, weights.confidence, weights.l1) == (1, 5, 1, 1, 0)
    optimizer, schedule = recipe.optimizer, recipe.schedule
    assert (optimizer.name, optimizer.learning_rate, optimizer.decay) == ("adam", 2e-4, "linear")
    assert (optimizer.constant_share, schedule.batch_size) == (250 / 500, 8)
    assert schedule.steps == 500 * 1080 // 8
    assert (recipe.architecture.norm, recipe.architecture.up, recipe.architecture.prior) == (
        "batch",
        "transposed",
        "atlas",
    )
    assert (recipe.cgsamr.labelwise, recipe.cgsamr.scales) == (True, 2)


def test_the_published_unpaired_run():
    recipe = load_recipe("ucgsamr")
    losses = recipe.losses.model_dump()
    assert losses.pop("darkness") == losses.pop("tissue") == 0
    assert set(losses.values()) == {1.0}
    assert (recipe.schedule.batch_size, recipe.schedule.steps) == (1, 800 * 1080)
    assert (recipe.optimizer.learning_rate, recipe.optimizer.constant_share) == (2e-4, 400 / 800)
    assert recipe.architecture.prior == "tissue"


def test_the_unpaired_run_alone_has_noise():
    assert load_recipe("ucgsamr").cgsamr.outline_noise == 0
    assert load_recipe("ucgsamr_compact").cgsamr.outline_noise > 0
    with pytest.raises(UsageError, match="must not be negative"):
        load_recipe("ucgsamr_compact", ["cgsamr.outline_noise=-1"])
    with pytest.raises(UsageError, match="outline_noise"):
        load_recipe("cgsamr_compact", ["cgsamr.outline_noise=0.1"])


def test_the_baseline_has_no_modules():
    shape = load_recipe("cgsamr_compact", ["cgsamr.form='pix2pix'"]).architecture
    assert (shape.form, shape.confidence, shape.stretch_out) == ("pix2pix", False, False)


@pytest.mark.parametrize(
    "change,message",
    [
        ("data.views=['axial','coronal']", "must be"),
        ("data.axial=[48,64]", "64 pixels"),
        ("normalization.scheme='volume'", "must be 'range'"),
        ("augmentation.contrast=0.1", "must be 0"),
        ("cgsamr.scales=3", "1 or 2"),
        ("cgsamr.segmenter_widths=[10]", "multiples of 8"),
        ("cgsamr.discriminator_width=0", "at least 1"),
        ("cgsamr.halvings=1", "2 to 4"),
        ("optimizer.discriminator_rate=-1", "must not be negative"),
        ("losses.feature=-1", "no loss may be negative"),
        ("cgsamr.up='magic'", "use one of"),
    ],
)
def test_what_cannot_be(change, message):
    with pytest.raises(UsageError, match=message):
        load_recipe("cgsamr_compact", [change])
