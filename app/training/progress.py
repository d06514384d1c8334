"""Track elapsed time, mean losses and throughput of a training run."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from app.training.checkpoint import State
from app.training.config import Recipe
from app.training.distributed import Processes
from app.training.logger import RunLog

log = logging.getLogger(__name__)

_LOG_SECONDS = 20.0


class TrainingProgress:
    """Clock and running sums of a run, from its start or its resumption."""

    def __init__(self, state: State, recipe: Recipe, group: Processes, clock: Callable[[], float]) -> None:
        self._state, self._recipe, self._group, self._clock = state, recipe, group, clock
        self._earlier, self._began = state.minutes, self._clock()
        self._paused = self._share = 0.0
        self._sums: dict[str, tuple[Tensor, int]] = {}
        self._count, self._said = 0, self._clock()

    def share(self) -> float:
        """Give the share of the run that is over, 0 to 1, the same on all processes.

        It is that of the steps or that of the minutes, whichever is further.
        """
        schedule = self._recipe.schedule
        by_steps = self._state.step / schedule.steps if schedule.steps else 0.0
        self._state.minutes = self._earlier + (self._clock() - self._began - self._paused) / 60
        by_minutes = self._state.minutes / schedule.budget_minutes if schedule.budget_minutes else 0.0
        # Clocks differ between processes; the first one's counts.
        self._share = (
            self._group.agree(min(max(by_steps, by_minutes), 1.0)) if schedule.budget_minutes else min(by_steps, 1.0)
        )
        return self._share

    @contextlib.contextmanager
    def bar(self, shown: bool) -> Iterator[Any]:
        """Show a progress bar with images per second and the time left.

        It is silent where nobody watches.
        """
        layout = "{percentage:3.0f} %|{bar}| {elapsed} gone, {remaining} left{postfix}"
        with tqdm(total=100.0, initial=100 * self.share(), bar_format=layout, disable=None if shown else True) as bar:
            yield bar

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Count one step."""
        for name, value in losses.items():
            total, count = self._sums.get(name, (torch.zeros_like(value), 0))
            self._sums[name] = total + value, count + 1
        self._count += 1

    def due(self) -> bool:
        """Say whether it is time for a report."""
        return self._clock() - self._said > _LOG_SECONDS

    def report(self, board: RunLog | None, bar: Any) -> None:
        """Log the means since the last report."""
        if not self._count:
            return
        now = self._clock()
        schedule = self._recipe.schedule
        seen = self._count * schedule.images_per_step * self._group.count
        values = {name: float(total) / count for name, (total, count) in self._sums.items()}
        values["images_per_second"] = seen / max(now - self._said, 1e-9)
        if board is not None:
            board.write(self._state.step, self._state.minutes, values)
            left = self._state.minutes * (1 - self._share) / self._share if self._share > 0 else math.nan
            text = "  ".join(
                f"{k} {v:.4f}" if k != "images_per_second" else f"{v:.1f} images/s" for k, v in values.items()
            )
            log.info("step %d  %.1f min, %.0f left  %s", self._state.step, self._state.minutes, left, text)
        if bar is not None:
            bar.set_postfix_str(f"{values['images_per_second']:.1f} images/s")
        self._sums, self._count, self._said = {}, 0, now

    def restart(self) -> None:
        """Leave the time since the last report out of the clock: it was not training."""
        # What has passed since the last report was spent on them.
        now = self._clock()
        self._paused += now - self._said
        self._said = now
