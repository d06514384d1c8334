from __future__ import annotations

import re

import pytest
import torch

from app.cli import main
from app.core.errors import ExitCode
from app.data.phantom import make_phantom, write_phantom
from app.registry.manifest import read_manifest
from app.training.config import load_recipe
from app.training.data.cache import build_cache
from app.training.tasks.segmentation2d import Segmentation2dTask
from tests.networks.small_models import scores_of
from tests.training.helpers import SMALL, SMALL_OPTIONS, by_heart, gradient_of, source_of


@pytest.fixture(scope="module")
def subjects(training_data, training_cache):
    return build_cache(training_data, training_cache)


def test_the_segmenter_learns_one_batch_by_heart(subjects):
    recipe = load_recipe("segmenter", [*SMALL, "schedule.batch_size=2"])
    torch.manual_seed(0)
    task = Segmentation2dTask(recipe, torch.device("cpu"))
    losses = by_heart(task, source_of(subjects, recipe), steps=25, rate=2e-3)
    assert losses[-1]["tversky"] < 0.8 * losses[0]["tversky"]
    assert losses[-1]["entropy"] < 0.5 * losses[0]["entropy"]


@pytest.mark.parametrize("weights", [(1, 0), (0, 1)])
def test_a_segmenter_learns_by_each_of_its_losses_alone(subjects, weights):
    changes = [f"losses.{k}={w}" for k, w in zip(("segmentation", "entropy"), weights, strict=True)]
    recipe = load_recipe("segmenter", [*SMALL, "schedule.batch_size=2", "schedule.precision='fp32'", *changes])
    torch.manual_seed(0)
    task = Segmentation2dTask(recipe, torch.device("cpu"))
    losses = task.step(source_of(subjects, recipe), 0, 1, lambda _: True)
    assert set(losses) == {"tversky", "entropy"}
    one = gradient_of(task.segmenter)
    both = load_recipe("segmenter", [*SMALL, "schedule.batch_size=2", "schedule.precision='fp32'"])
    torch.manual_seed(0)
    task = Segmentation2dTask(both, torch.device("cpu"))
    task.step(source_of(subjects, both), 0, 1, lambda _: True)
    assert 1e-3 < (gradient_of(task.segmenter) - one).norm()
    assert one.norm() > 0


def test_the_segmenter_is_trained_exported_and_not_run_as_a_model(trained, tmp_path, capsys):
    code = main(["train", "segmenter", "--data", str(trained / "data"), "--run", str(tmp_path / "seg"),
                 *SMALL_OPTIONS, "--set", "schedule.steps=1", "--set", "schedule.batch_size=2",
                 "--budget-minutes", "5", "--cache", str(trained / "run" / "cache")])  # fmt: skip
    assert code == ExitCode.OK
    export = ["export", str(tmp_path / "seg"), "--data", str(trained / "data"), "--weights", str(tmp_path / "w"),
              "--model", "segmenter"]  # fmt: skip
    assert main([*export, "--score-on", str(trained / "unseen")]) == ExitCode.OK
    assert main(export) == ExitCode.USAGE
    assert "only with scores" in capsys.readouterr().err
    path = tmp_path / "w" / "lineage.json"
    path.write_text(re.sub(r'"dice_(..)": [0-9.]+', r'"dice_\1": 0.99', path.read_text()))
    assert main([*export, "--score-on", str(trained / "unseen")]) == ExitCode.USAGE
    assert "is worse than 'segmenter'" in capsys.readouterr().err
    manifest = read_manifest(tmp_path / "w")
    assert manifest.default is None
    assert "dice_WT" in scores_of(tmp_path / "w", "segmenter").mean
    write_phantom(make_phantom((40, 44, 36)), tmp_path / "in", "new", leave_out=("t1n",))
    code = main(["synthesize", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--weights",
                 str(tmp_path / "w"), "--model", "segmenter"])  # fmt: skip
    assert code == ExitCode.WEIGHTS
    assert "makes no sequence" in capsys.readouterr().err
    assert main(["info", "--weights", str(tmp_path / "w")]) == ExitCode.OK
    assert "segmenter: segmenter2d" in capsys.readouterr().out
