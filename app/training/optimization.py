"""How far each step moves the weights: the optimiser and its rate over a run."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from app.training.config import OptimizerRecipe, ScheduleRecipe


def learning_rate(recipe: OptimizerRecipe, schedule: ScheduleRecipe, progress: float, processes_: int = 1) -> float:
    """Compute the learning rate: linear warm-up, then one cosine down to 0.

    Args:
        progress: how much of the run is over, 0 to 1.
        processes_: how many share a step; the rate scales with the slices of all.
    """
    peak = recipe.learning_rate
    if recipe.reference_batch > 0:
        peak *= schedule.batch_size * processes_ / recipe.reference_batch
    warmth = 1.0 if schedule.warmup == 0 else min(1.0, (progress + 1e-4) / schedule.warmup)
    return peak * warmth * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def new_optimizer(network: nn.Module, recipe: OptimizerRecipe) -> torch.optim.Optimizer:
    """Build Adam or AdamW, as the recipe says, over the weights that are not frozen."""
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW if recipe.name == "adamw" else torch.optim.Adam
    return kind(
        [p for p in network.parameters() if p.requires_grad],
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
        weight_decay=recipe.weight_decay,
    )
