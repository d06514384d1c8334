"""Run by torchrun on every node, or alone: a training whose losses are written down.

Alone, each step takes the slices that the processes of two nodes draw together.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from app.training import trainer
from app.training.config import load_recipe
from app.training.data.slices import Batch, SampledStep, Sampler
from app.training.trainer import TrainingPaths, train

NODES = 2

data, run, losses, recipe, *changes = sys.argv[1:]
noted: list[float] = []
step, at = trainer._Run._step, Sampler.at


def step_and_note(self: Any, progress: float) -> dict[str, torch.Tensor]:
    if self.group.count == 1:
        # Convolutions of other batch sizes round otherwise, and normalization of flat backgrounds makes that large.
        self.state.pieces = NODES
    totals = step(self, progress)
    loss = totals["l1"].detach().clone().double()
    if self.group.count > 1:
        dist.all_reduce(loss)
    noted.append(float(loss) / self.group.count)
    return totals


def at_as_two(self: Sampler, number: int, size: int, max_shift: int) -> SampledStep:
    """Draw the batches of both processes, one after the other."""
    samples = []
    for rank in range(NODES):
        sampler = copy.copy(self)
        sampler._rank = rank
        samples.append(at(sampler, number, size // NODES, max_shift))
    first, tensors = samples[0], zip(*(s.batch._tensors() for s in samples), strict=True)
    batch: Batch = first.batch._of([torch.cat(parts) for parts in tensors])
    return SampledStep(batch, first.plan, first.own)


trainer._Run._step = step_and_note
if "WORLD_SIZE" not in os.environ:
    Sampler.at = at_as_two
train(load_recipe(recipe, changes), TrainingPaths(Path(data), Path(run)))
if os.environ.get("RANK", "0") == "0":
    Path(losses).write_text(json.dumps(noted))
