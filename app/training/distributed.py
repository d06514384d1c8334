"""One process, or several that `torchrun` started.

Their gradients are averaged, everything else is the same on each.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from app.core.errors import UsageError


@dataclass(frozen=True)
class Processes:
    """This process among all.

    Attributes:
        rank, count: its number, from 0, and how many there are.
        device: what it computes on.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this one writes files and talks."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Average each gradient over the processes; a missing one counts as zero."""
        if self.count == 1:
            return
        held = list(parameters)
        flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten().float() for p in held])
        dist.all_reduce(flat)
        flat /= self.count
        for parameter, part in zip(held, torch.split(flat, [p.numel() for p in held]), strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype)

    def agree(self, value: float) -> float:
        """Give the first process's value on all of them."""
        if self.count == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(shared, 0)
        return float(shared.item())

    def largest(self, value: int) -> int:
        """Give the largest of all processes' values on all of them."""
        if self.count == 1:
            return value
        shared: Tensor = torch.tensor([value], device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared.item())

    @contextmanager
    def first_alone(self) -> Iterator[bool]:
        """Let the first process work while the others wait; its error ends them all.

        Yields:
            Whether this is the first process.

        Raises:
            UsageError: on the others, where the first one failed.
        """
        if self.first:
            failed = 1
            try:
                yield True
                failed = 0
            finally:
                self.largest(failed)
        else:
            yield False
            if self.largest(0):
                raise UsageError(f"process {self.rank} ends because the first one did; its message says why.")

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.count > 1:
            dist.barrier()


@contextmanager
def processes(device: str) -> Iterator[Processes]:
    """Join the other processes that `torchrun` started, if it did.

    Args:
        device: `cpu`, `cuda` or `cuda:N`; with several processes each takes the GPU of its local rank.

    Raises:
        UsageError: there are more processes than GPUs.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes(0, 1, torch.device(device))
        return
    chosen = torch.device(device)
    if chosen.type == "cuda":
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if local >= torch.cuda.device_count():
            raise UsageError(f"torchrun started more processes than there are GPUs ({torch.cuda.device_count()}).")
        chosen = torch.device("cuda", local)
        torch.cuda.set_device(chosen)
    # The others wait while the first prepares the cache, or validates: hours on a large data set.
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(hours=12))
    try:
        yield Processes(dist.get_rank(), count, chosen)
        # A process that leaves while another still talks to it would abort that one.
        dist.barrier()
    finally:
        dist.destroy_process_group()
