from __future__ import annotations

import numpy as np
import pytest
import torch

from app.training.config import OptimizerRecipe, ScheduleRecipe, load_recipe
from app.training.optimization import FIRST_SCALE, GROWTH_INTERVAL, LossScale, learning_rate, new_optimizer
from tests.training.helpers import changed


class TestSchedule:
    def test_it_warms_up_and_anneals_to_nothing(self):
        recipe = load_recipe("r1", ["schedule.warmup=0.03"])
        rates = [learning_rate(recipe.optimizer, recipe.schedule, p) for p in np.linspace(0, 1, 201)]
        assert rates[0] < 0.01 * max(rates)
        assert max(rates) == pytest.approx(5e-4, rel=0.01)
        assert np.argmax(rates) == pytest.approx(6, abs=1)
        assert rates[-1] == pytest.approx(0, abs=1e-9)

    def test_it_scales_with_the_slices_of_a_step(self):
        recipe = load_recipe("r1", ["schedule.batch_size=16", "schedule.warmup=0.03"])
        assert learning_rate(recipe.optimizer, recipe.schedule, 0.03, 2) == pytest.approx(2.5e-4, rel=0.02)


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
        assert self._moved(changed(self.RECIPE, name="adamw"), [0.0, 0.0]) == pytest.approx([4 * shrunk, -2 * shrunk])

    def test_adam_takes_the_decay_for_a_part_of_the_gradient(self):
        # The first step is as long as the rate, whatever the gradient; 0.5 * 4 < 3 leaves the first weight to grow.
        assert self._moved(self.RECIPE, [0.0, 0.0]) == pytest.approx([3.99, -1.99])
        assert self._moved(self.RECIPE, [-3.0, 0.0]) == pytest.approx([4.01, -1.99])

    @pytest.mark.parametrize("name", ["adam", "adamw"])
    def test_without_decay_only_the_gradient_moves(self, name):
        recipe = changed(self.RECIPE, name=name, weight_decay=0.0)
        assert self._moved(recipe, [0.0, 5.0]) == pytest.approx([4.0, -2.01])

    def test_its_memory_is_the_recipes(self):
        optimizer = new_optimizer(torch.nn.Linear(2, 1), changed(self.RECIPE, beta1=0.5, beta2=0.9))
        assert optimizer.defaults["betas"] == (0.5, 0.9)

    def test_what_is_frozen_is_left_out(self):
        network = torch.nn.Linear(2, 1)
        network.bias.requires_grad_(False)
        ((held,),) = (group["params"] for group in new_optimizer(network, self.RECIPE).param_groups)
        assert held is network.weight


class TestLossScale:
    def test_gradients_come_back_to_their_size(self):
        scale, network = LossScale(), torch.nn.Linear(1, 1, bias=False)
        (scale.value * 3 * network.weight.sum()).backward()
        assert float(network.weight.grad) == 3 * FIRST_SCALE
        scale.unscale(network)
        assert float(network.weight.grad) == 3

    def test_it_halves_on_overflow_and_doubles_after_long_without(self):
        scale = LossScale()
        scale.adapt(False)
        assert scale.value == FIRST_SCALE / 2
        for _ in range(GROWTH_INTERVAL - 1):
            scale.adapt(True)
        assert scale.value == FIRST_SCALE / 2
        again = LossScale()
        again.restore(scale.state)
        again.adapt(True)
        assert again.value == FIRST_SCALE
        assert again.steady == 0


def test_a_constant_share_then_a_line_to_nothing():
    recipe = OptimizerRecipe(learning_rate=1.0, reference_batch=0, decay="linear", constant_share=0.4)
    schedule = ScheduleRecipe(steps=1, warmup=0.0)
    rates = [learning_rate(recipe, schedule, progress) for progress in (0.0, 0.4, 0.7, 1.0)]
    assert rates == pytest.approx([1.0, 1.0, 0.5, 0.0])
