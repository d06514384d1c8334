"""What each pass of a training step makes, and from what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from app.core.constants import MODALITIES
from app.training.tasks.synthesis_recipe import SynthesisData

_COUNT = len(MODALITIES)


@dataclass(frozen=True)
class Pass:
    """One run of the generator over a batch.

    Attributes:
        target: int64 (B,), index of the sequence to make.
        present: float32 B x 4, 1 for each sequence that it is made of.
        members: those sequences, where the whole batch shares them.
    """

    target: Tensor
    present: Tensor
    members: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Job:
    """What one pass makes from what, the same for a whole batch.

    Attributes:
        target: index of the sequence to make.
        members: indices of the sequences that are present.
        second: index of the sequence that the second pass drops and makes; it sees the first's result.
    """

    target: int
    members: tuple[int, ...]
    second: int

    @property
    def targets(self) -> set[int]:
        """The sequences that it makes of some sample."""
        return {self.target}

    def first_pass(self, count: int, device: torch.device) -> Pass:
        """Give the pass that makes the target."""
        return _shared(self.target, self.members, count, device)

    def second_pass(self, count: int, device: torch.device) -> Pass:
        """Give the pass that makes another sequence from all the others."""
        return _shared(self.second, tuple(i for i in range(_COUNT) if i != self.second), count, device)

    def pieces(self, count: int) -> list[Job]:
        """Give the job of each part of a batch."""
        return [self] * count


@dataclass(frozen=True)
class MixedJob:
    """What one pass makes from what, sample by sample.

    Attributes:
        target: int64 (B,), index of the sequence to make.
        present: float32 B x 4, 1 for each sequence that is there.
        second: int64 (B,), the one of these that the second pass drops and makes.
    """

    target: Tensor
    present: Tensor
    second: Tensor

    @property
    def targets(self) -> set[int]:
        """The sequences that it makes of some sample."""
        return set(self.target.tolist())

    def first_pass(self, count: int, device: torch.device) -> Pass:
        """Give the pass that makes the target."""
        return Pass(self.target.to(device), self.present.to(device))

    def second_pass(self, count: int, device: torch.device) -> Pass:
        """Give the pass that makes another sequence from all the others."""
        second = self.second.to(device)
        return Pass(second, 1 - one_hot(second))

    def pieces(self, count: int) -> list[Self]:
        """Give the job of each part of a batch, cut as `Batch.pieces` cuts."""
        parts = zip(*(t.chunk(count) for t in (self.target, self.present, self.second)), strict=True)
        return [type(self)(*part) for part in parts]


def one_hot(sequences: Tensor) -> Tensor:
    """Turn indices (B,) into float32 B x 4 with one 1 each."""
    return torch.nn.functional.one_hot(sequences, _COUNT).float()


def _shared(target: int, members: tuple[int, ...], count: int, device: torch.device) -> Pass:
    present = torch.zeros(count, _COUNT, device=device)
    present[:, list(members)] = 1
    return Pass(torch.full((count,), target, device=device), present, members)


def draw_jobs(plan: np.random.Generator, data: SynthesisData, count: int, lacking: int | None = None) -> list[Job]:
    """Draw `count` different sequences to make, in challenge order.

    Each comes with the present sequences and a second one.

    Args:
        lacking: index of a sequence that is never present.
    """
    targets = [MODALITIES.index(m) for m in data.targets]
    drawn = sorted(plan.choice(targets, count, replace=False).tolist())
    return [_job(plan, data, target, lacking) for target in drawn]


def _job(plan: np.random.Generator, data: SynthesisData, target: int, lacking: int | None) -> Job:
    others = [i for i in range(_COUNT) if i not in (target, lacking)]
    size = min(_members_count(plan, data), len(others))
    members = tuple(sorted(plan.choice(others, size, replace=False).tolist()))
    return Job(target, members, int(plan.choice(others)))


def _members_count(random: np.random.Generator, data: SynthesisData) -> int:
    """Three with the probability `single_missing`, else one or two."""
    return 3 if random.random() < data.single_missing else int(random.integers(1, 3))


def draw_mixed_jobs(own: np.random.Generator, data: SynthesisData, count: int, size: int) -> list[MixedJob]:
    """Draw, for each sample, `count` different sequences to make one after the other.

    The first is any of `data.targets`, the next ones follow it in their order. Each comes with present sequences of
    its own, one of which the second pass drops.

    Args:
        size: samples of the batch.

    Source: section 4.5 of the BraSyn 2025 thesis (available sequences drawn independently for each sample; the first
    sequence at random, the others sequentially).
    """
    targets = [MODALITIES.index(m) for m in data.targets]
    starts = own.integers(len(targets), size=size)
    return [_mixed_job(own, data, [targets[(s + i) % len(targets)] for s in starts]) for i in range(count)]


def _mixed_job(own: np.random.Generator, data: SynthesisData, targets: list[int]) -> MixedJob:
    present, second = torch.zeros(len(targets), _COUNT), []
    for row, target in enumerate(targets):
        others = [i for i in range(_COUNT) if i != target]
        members = own.choice(others, _members_count(own, data), replace=False)
        present[row, members.tolist()] = 1
        second.append(int(own.choice(members)))
    return MixedJob(torch.tensor(targets), present, torch.tensor(second))
