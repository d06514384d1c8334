from __future__ import annotations

import io
import re
import sys

import pytest
import torch

from app.training.checkpoint import State
from app.training.distributed import Processes
from app.training.progress import TrainingProgress
from app.training.tasks.synthesis import SynthesisTask
from app.training.trainer import TrainingPaths, train
from tests.training.helpers import small


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Screen(io.StringIO):
    def __init__(self, watched: bool) -> None:
        super().__init__()
        self._watched = watched

    def isatty(self) -> bool:
        return self._watched


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def screen(monkeypatch):
    """Puts something else in the place of the terminal's output of errors."""

    def put(watched: bool) -> Screen:
        screen = Screen(watched)
        monkeypatch.setattr(sys, "stderr", screen)
        return screen

    return put


@pytest.fixture
def paths(training_data, training_cache, tmp_path):
    return TrainingPaths(training_data, tmp_path / "run", training_cache)


def new_progress(clock, *changes: str, minutes: float = 0.0):
    recipe = small("schedule.steps=0", "schedule.budget_minutes=10", *changes)
    state = State(recipe, minutes=minutes)
    return TrainingProgress(state, recipe, Processes(0, 1, torch.device("cpu")), clock), state


def each_step_takes(monkeypatch, clock, seconds):
    """Steps that move nothing and last as long on the clock."""

    def step(*_):
        clock.now += seconds
        return {"l1": torch.tensor(0.5)}

    monkeypatch.setattr(SynthesisTask, "step", step)


class TestClock:
    def test_minutes_count_towards_the_budget(self, clock):
        progress, state = new_progress(clock, minutes=2)
        clock.now += 180
        assert progress.share() == pytest.approx(0.5)
        assert state.minutes == pytest.approx(5)
        clock.now += 3600
        assert progress.share() == 1

    def test_steps_end_it_too(self, clock):
        progress, state = new_progress(clock, "schedule.steps=8")
        state.step = 6
        assert progress.share() == 0.75

    def test_validation_does_not_count(self, clock):
        progress, state = new_progress(clock)
        for minute in (1, 2):
            progress.add({"l1": torch.tensor(0.5)})
            clock.now += 60
            progress.report(None, None)
            clock.now += 3000
            progress.restart()
            assert progress.share() == pytest.approx(minute / 10)
            assert state.minutes == pytest.approx(minute)

    def test_a_run_gets_its_whole_budget_of_training(self, monkeypatch, paths, clock):
        each_step_takes(monkeypatch, clock, 1.0)
        pictures, validated = SynthesisTask.pictures, []

        def slow_pictures(self, sampler):
            clock.now += 500
            return pictures(self, sampler)

        def slow_validation(*_):
            clock.now += 5000
            validated.append(clock.now)
            return {"ssim_brain": 0.5}

        monkeypatch.setattr(SynthesisTask, "pictures", slow_pictures)
        monkeypatch.setattr(SynthesisTask, "validate", slow_validation)
        recipe = small("schedule.steps=0", "schedule.budget_minutes=0.1", "schedule.epoch_steps=3",
                       "schedule.validate_every=1", "data.held_out=1")  # fmt: skip
        state = train(recipe, paths, clock=clock).state
        assert state.step == 6
        assert state.minutes == pytest.approx(0.1)
        assert len(validated) == 2


class TestBar:
    def test_it_tells_the_speed_and_the_time_left(self, clock, screen):
        watched = screen(True)
        progress, _ = new_progress(clock, "schedule.batch_size=3", "schedule.targets_per_batch=4")
        with progress.bar(True) as bar:
            for _ in range(2):
                progress.add({"l1": torch.tensor(0.5)})
            clock.now += 60
            bar.update(100 * progress.share() - bar.n)
            progress.report(None, bar)
        # Two steps of three slices, each made in four sequences, in a minute.
        assert re.search(r" 10 %\|.*\| \d\d:\d\d gone, \d\d:\d\d left, 0\.4 images/s", watched.getvalue())

    @pytest.mark.parametrize(("watched", "shown"), [(True, False), (False, True)])
    def test_it_is_silent_where_nobody_watches(self, clock, screen, watched, shown):
        output = screen(watched)
        progress, _ = new_progress(clock)
        with progress.bar(shown) as bar:
            progress.add({"l1": torch.tensor(0.5)})
            clock.now += 60
            bar.update(10)
            progress.report(None, bar)
        assert not output.getvalue()

    def test_a_run_shows_it(self, monkeypatch, paths, clock, screen):
        watched = screen(True)
        each_step_takes(monkeypatch, clock, 30.0)
        train(small("schedule.steps=3"), paths, clock=clock)
        assert "left, 0.3 images/s" in watched.getvalue()
        assert "100 %|" in watched.getvalue()
