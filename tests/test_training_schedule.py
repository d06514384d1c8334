from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from app.training import loop
from app.training.loop import TrainingPaths, train
from app.training.recipe import OptimizerRecipe
from app.training.schedule import learning_rate, new_optimizer
from tests.training import small


@pytest.fixture
def paths(training_data, training_cache, tmp_path):
    return TrainingPaths(training_data, tmp_path / "run", training_cache)


def flat(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


class TestOptimizer:
    RECIPE = OptimizerRecipe(learning_rate=0.01, weight_decay=0.5)

    def _moved(self, recipe, gradient):
        network = torch.nn.Linear(2, 1, bias=False)
        network.weight.data = torch.tensor([[4.0, -2.0]])
        network.weight.grad = torch.tensor([gradient])
        new_optimizer(network, recipe).step()
        return network.weight[0].tolist()

    def test_adamw_shrinks_weights_by_their_size(self):
        shrunk = 1 - 0.01 * 0.5
        assert self._moved(replace(self.RECIPE, name="adamw"), [0.0, 0.0]) == pytest.approx([4 * shrunk, -2 * shrunk])

    def test_adam_takes_the_decay_for_a_part_of_the_gradient(self):
        # The first step is as long as the rate, whatever the gradient; 0.5 * 4 < 3 leaves the first weight to grow.
        assert self._moved(self.RECIPE, [0.0, 0.0]) == pytest.approx([3.99, -1.99])
        assert self._moved(self.RECIPE, [-3.0, 0.0]) == pytest.approx([4.01, -1.99])

    @pytest.mark.parametrize("name", ["adam", "adamw"])
    def test_without_decay_only_the_gradient_moves(self, name):
        recipe = replace(self.RECIPE, name=name, weight_decay=0.0)
        assert self._moved(recipe, [0.0, 5.0]) == pytest.approx([4.0, -2.01])

    def test_its_memory_is_the_recipes(self):
        optimizer = new_optimizer(torch.nn.Linear(2, 1), replace(self.RECIPE, beta1=0.5, beta2=0.9))
        assert optimizer.defaults["betas"] == (0.5, 0.9)

    def test_what_is_frozen_is_left_out(self):
        network = torch.nn.Linear(2, 1)
        network.bias.requires_grad_(False)
        ((held,),) = (group["params"] for group in new_optimizer(network, self.RECIPE).param_groups)
        assert held is network.weight


class TestUpdate:
    """What reaches an optimiser in a run's step."""

    def _updates(self, monkeypatch, paths, recipe):
        """Per update, in order: the gradient's norm and the rate."""
        found = []
        original = loop.new_optimizer

        def note(optimizer, *_):
            (group,) = optimizer.param_groups
            gradients = [p.grad.flatten() for p in group["params"] if p.grad is not None]
            found.append((float(torch.cat(gradients).norm()), group["lr"]))

        def watched(network, recipe):
            optimizer = original(network, recipe)
            optimizer.register_step_pre_hook(note)
            return optimizer

        monkeypatch.setattr(loop, "new_optimizer", watched)
        train(recipe, paths)
        return found

    def test_gradients_are_no_longer_than_the_clip(self, monkeypatch, paths):
        recipe = small("schedule.steps=1", "schedule.targets=1", "optimizer.clip_norm=0.01")
        updates = self._updates(monkeypatch, paths, recipe)
        # Those of untrained networks are longer; they keep their direction and get the length of the clip.
        assert [norm for norm, _ in updates] == pytest.approx([0.01, 0.01], rel=1e-3)

    def test_shorter_ones_stay_as_they_are(self, monkeypatch, paths):
        recipe = small("schedule.steps=1", "schedule.targets=1", "optimizer.clip_norm=1e6")
        assert all(0.01 < norm < 1e5 for norm, _ in self._updates(monkeypatch, paths, recipe))

    def test_the_discriminators_rate_is_a_multiple_of_the_generators(self, monkeypatch, paths):
        recipe = small("schedule.steps=2", "schedule.targets=1", "optimizer.discriminator_rate=0.25")
        updates = self._updates(monkeypatch, paths, recipe)
        asked = [learning_rate(recipe.optimizer, recipe.schedule, progress) for progress in (0, 0.5)]
        assert asked[0] != asked[1]
        expected = [rate * share for rate in asked for share in (1, 0.25)]
        assert [rate for _, rate in updates] == pytest.approx(expected)


class TestAverage:
    def test_it_follows_the_generator_soon_at_first_then_by_the_recipe(self, monkeypatch, paths):
        ends = []
        original = loop._Run._step

        def watched(run, progress):
            if not ends:
                ends.append((flat(run.task.generator), flat(run.task.average)))
            losses = original(run, progress)
            ends.append((flat(run.task.generator), flat(run.task.average)))
            return losses

        monkeypatch.setattr(loop._Run, "_step", watched)
        train(small("schedule.steps=3", "schedule.targets=1", "schedule.warmup=0", "optimizer.ema=0.15"), paths)
        learner, expected = ends[0]
        assert torch.equal(learner, expected)
        # (1 + step) / (10 + step), until the recipe's share is less.
        for keep, (learner, average) in zip((1 / 10, 0.15, 0.15), ends[1:], strict=True):
            before, expected = expected, keep * expected + (1 - keep) * learner
            assert torch.allclose(average, expected, atol=1e-6)
            assert not torch.allclose(average, learner, atol=1e-6)
            assert not torch.allclose(average, before, atol=1e-6)
