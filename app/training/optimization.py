"""How far each step moves the weights: the optimiser and its rate over a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import nn

from app.training.config import OptimizerRecipe, ScheduleRecipe


def learning_rate(recipe: OptimizerRecipe, schedule: ScheduleRecipe, progress: float, processes_: int = 1) -> float:
    """Compute the learning rate: linear warm-up, a constant share, then a cosine or a line down to 0.

    Args:
        progress: how much of the run is over, 0 to 1.
        processes_: how many share a step; the rate scales with the slices of all.
    """
    peak = recipe.learning_rate
    if recipe.reference_batch > 0:
        peak *= schedule.batch_size * processes_ / recipe.reference_batch
    warmth = 1.0 if schedule.warmup == 0 else min(1.0, (progress + 1e-4) / schedule.warmup)
    constant = recipe.constant_share
    fallen = max(0.0, min(progress, 1.0) - constant) / (1 - constant)
    if recipe.decay == "linear":
        return peak * warmth * (1 - fallen)
    return peak * warmth * 0.5 * (1 + math.cos(math.pi * fallen))


def new_optimizer(network: nn.Module, recipe: OptimizerRecipe) -> torch.optim.Optimizer:
    """Build Adam or AdamW, as the recipe says, over the weights that are not frozen."""
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW if recipe.name == "adamw" else torch.optim.Adam
    return kind(
        [p for p in network.parameters() if p.requires_grad],
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
        weight_decay=recipe.weight_decay,
    )


#: Scale of losses in float16 at first, and updates without overflow after which it doubles.
FIRST_SCALE: Final = 2.0**16
GROWTH_INTERVAL: Final = 2000


class LossScale:
    """Scale losses up, so that small gradients survive in float16.

    It halves with every update whose gradients overflow, and doubles after `GROWTH_INTERVAL` others.

    Attributes:
        value: factor of the losses.
        steady: updates without overflow since it last changed.

    Source: Micikevicius et al., Mixed precision training, ICLR 2018, section 3.2.
    """

    def __init__(self) -> None:
        self.value, self.steady = FIRST_SCALE, 0

    @property
    def state(self) -> dict[str, float]:
        """Its numbers, for checkpoints."""
        return {"loss_scale": self.value, "loss_scale_steady": float(self.steady)}

    def restore(self, values: Mapping[str, float]) -> None:
        """Take over the numbers of `state`, where they are there."""
        self.value = values.get("loss_scale", self.value)
        self.steady = int(values.get("loss_scale_steady", self.steady))

    def unscale(self, network: nn.Module) -> None:
        """Divide a network's gradients by the scale."""
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.grad /= self.value

    def adapt(self, finite: bool) -> None:
        """Change the scale after an update.

        Args:
            finite: whether its gradients did not overflow.
        """
        self.steady += 1
        if not finite:
            self.value, self.steady = self.value / 2, 0
        elif self.steady >= GROWTH_INTERVAL:
            self.value, self.steady = self.value * 2, 0
