"""Run by torchrun in tests/test_training_loop.py: two processes must agree on everything that they should."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from app.core.errors import UsageError
from app.training import trainer as loop
from app.training.config import load_recipe
from app.training.distributed import Processes
from app.training.trainer import TrainingPaths, train


def check(group: Processes) -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    alone = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.full((3,), float(group.rank))
    if group.first:
        alone.grad = torch.ones(2)
    group.average_gradients([parameter, alone])
    assert torch.equal(parameter.grad, torch.full((3,), 0.5))
    assert torch.equal(alone.grad, torch.full((2,), 0.5))
    assert group.agree(float(group.rank)) == 0.0
    assert group.largest(15 * group.rank) == 15
    assert group.largest(0) == 0
    try:
        with group.first_alone() as chosen:
            if chosen:
                raise UsageError("no subject")
    except UsageError as error:
        assert str(error) == (
            "no subject" if group.first else "process 1 ends because the first one did; its message says why."
        )
    else:
        raise AssertionError("a mistake of the first process did not end the others")


data, run, recipe, *changes = sys.argv[1:]
ends = []
original = loop._Run.go


def go(self, clock):
    check(self.group)
    outcome = original(self, clock)
    assert self.task.task_state["mean_confidence"] > 0
    remembered = torch.tensor(list(self.task.task_state.values()))
    flat = torch.cat([p.detach().flatten() for p in (*self.task.average.parameters(), remembered)])
    gathered = [torch.zeros_like(flat) for _ in range(self.group.count)]
    dist.all_gather(gathered, flat)
    assert torch.equal(gathered[0], gathered[1]), "the processes' weights, or what they go by, differ"
    ends.append(outcome.state.step)
    return outcome


loop._Run.go = go
train(load_recipe(recipe, changes), TrainingPaths(Path(data), Path(run)))
assert ends == [2]
