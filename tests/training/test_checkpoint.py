from __future__ import annotations

import os

import pytest
import torch

from app.core.errors import UsageError
from app.training.checkpoint import LAST
from app.training.trainer import TrainingPaths, train
from tests.training.helpers import quick


@pytest.fixture
def paths(training_data, training_cache, tmp_path):
    return TrainingPaths(training_data, tmp_path / "run", training_cache)


class TestReading:
    @pytest.mark.parametrize("content", [b"", b"not a checkpoint", {"schema": 3}, {"schema": 3, "recipe": {}, "x": 1}])
    def test_a_damaged_checkpoint_is_named(self, paths, content):
        paths.run.mkdir()
        if isinstance(content, dict):
            torch.save(content, paths.run / LAST)
        else:
            (paths.run / LAST).write_bytes(content)
        with pytest.raises(UsageError, match=r"last\.pt is no (whole )?checkpoint"):
            train(quick("schedule.steps=1"), paths, resume=True)

    def test_a_checkpoint_executes_nothing(self, paths, tmp_path):
        class Evil:
            def __reduce__(self):
                return (os.mkdir, (str(tmp_path / "evil"),))

        paths.run.mkdir()
        torch.save({"schema": 3, "recipe": Evil()}, paths.run / LAST)
        with pytest.raises(UsageError):
            train(quick("schedule.steps=1"), paths, resume=True)
        assert not (tmp_path / "evil").exists()
