from __future__ import annotations

import fcntl

import pytest

from app.core.errors import UsageError
from app.training.trainer import TrainingPaths, train
from tests.training.helpers import quick


@pytest.fixture
def paths(training_data, training_cache, tmp_path):
    return TrainingPaths(training_data, tmp_path / "run", training_cache)


class TestRunDirectory:
    def test_a_run_is_not_written_over(self, paths):
        recipe = quick("schedule.steps=1")
        train(recipe, paths)
        with pytest.raises(UsageError, match="add --resume"):
            train(recipe, paths)
        with pytest.raises(UsageError, match=r"losses\.l1 = 10\.0, not 3\.0"):
            train(quick("schedule.steps=1", "losses.l1=3"), paths, resume=True)
        assert train(quick("schedule.steps=2"), paths, resume=True).state.step == 2

    def test_two_runs_do_not_write_to_one_folder(self, paths):
        paths.run.mkdir(parents=True)
        with (paths.run / ".lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(UsageError, match="another run writes to"):
                train(quick("schedule.steps=1"), paths)
        assert train(quick("schedule.steps=1"), paths).state.step == 1

    def test_a_lower_rate_may_be_set_on_resuming(self, paths):
        train(quick("schedule.steps=1"), paths)
        recipe = quick("schedule.steps=2", "optimizer.learning_rate=1e-5")
        assert train(recipe, paths, resume=True).state.step == 2

    def test_a_best_checkpoint_of_an_earlier_run_is_not_taken_for_this_ones(self, paths):
        paths.run.mkdir()
        (paths.run / "best.pt").touch()
        with pytest.raises(UsageError, match=r"best\.pt of an earlier run"):
            train(quick("schedule.steps=1"), paths)
