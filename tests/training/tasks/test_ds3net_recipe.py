from __future__ import annotations

import pytest

from app.core.errors import UsageError
from app.networks.architectures import DS3NET_WIDTHS
from app.networks.ds3net.losses import BACKGROUND_DIFFICULTY, TEMPERATURE
from app.training.config import load_recipe


def test_the_published_run():
    """Numbers of sections 2.1 to 2.3, 3.1 and 3.2."""
    recipe = load_recipe("ds3net")
    losses, rates = recipe.losses, recipe.optimizer
    assert (losses.pixel, losses.contrast, losses.adversarial) == (100, 1, 1)
    assert (losses.image, losses.feature) == (100, 1)
    assert (BACKGROUND_DIFFICULTY, TEMPERATURE) == (0.2, 0.07)
    assert (rates.name, rates.learning_rate, rates.decay, recipe.schedule.warmup) == ("adamw", 6e-4, "linear", 0)
    assert rates.learning_rate * rates.discriminator_rate == pytest.approx(3e-4)
    assert rates.teacher_rate == 1 / 5
    assert rates.weight_decay == 0.01
    assert recipe.schedule.batch_size == 6
    assert (recipe.data.axial, recipe.data.views, recipe.data.targets) == ((224, 224), ("axial",), ("t1c",))
    assert (recipe.data.tumour_share, recipe.data.core_share) == (1, 0.5)
    assert (recipe.ds3net.blocks, recipe.architecture.width) == (9, DS3NET_WIDTHS["paper"])
    assert not any(value for _, value in recipe.augmentation)
    assert recipe.optimizer.ema == 0


def test_stages_of_the_published_run():
    recipe = load_recipe("ds3net")
    first = recipe.schedule.steps * recipe.ds3net.teacher_share
    # 95 epochs of a hundred: the weights of the fifth before the last.
    assert first / 108 == pytest.approx(95, rel=0.01)
    assert recipe.ds3net.stopped_early == 5 / 100
    assert (recipe.schedule.steps - first) / recipe.schedule.epoch_steps == pytest.approx(100, rel=0.01)


@pytest.mark.parametrize("name", ["ds3net", "ds3net_compact"])
def test_recipes_describe_a_generator_of_one_sequence(name):
    recipe = load_recipe(name, ["data.targets=['t2f']"])
    assert recipe.task == "ds3net"
    assert recipe.spec.targets == ("t2f",)
    assert recipe.spec.needed == ("t1c", "t1n", "t2w")
    assert recipe.spec.architecture == recipe.architecture
    assert recipe.spec.views == ("axial",)


@pytest.mark.parametrize(
    "change,message",
    [
        ("data.targets=['t1c','t2f']", "data.targets must name one sequence"),
        ("data.targets=[]", "data.targets must name one sequence"),
        ("data.axial=[16,48]", "canvas of 32 pixels"),
        ("normalization.scheme=volume", "must be 'range'"),
        ("schedule.batch_size=3", "must be even"),
        ("output.contrast=0.5", "set it to 0"),
        ("output.fusion=confidence", "confidence head"),
        ("output.views=['coronal']", "among data.views"),
        ("ds3net.blocks=4", "at least 5"),
        ("ds3net.teacher_share=1.1", "at most 1"),
        ("ds3net.teacher_share=0.0", "above 0"),
        ("ds3net.stopped_early=1.0", "below 1"),
        ("ds3net.patches=1", "at least 2"),
        ("ds3net.discriminator_width=0", "at least 1"),
        ("optimizer.teacher_rate=-1.0", "must not be negative"),
        ("losses.pixel=-1.0", "no loss may be negative"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        load_recipe("ds3net_compact", [change])
