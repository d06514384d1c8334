"""Runs, interruptions and exports of both trainings, as a user does them."""

from __future__ import annotations

import pytest
import torch

from app.cli import main
from app.core.errors import ExitCode
from app.data.phantom import make_phantom, write_phantom
from app.registry.manifest import read_manifest
from app.training.checkpoint import LAST, load_state
from tests.training.tasks.cgsamr.helpers import SMALL

OPTIONS = [word for change in SMALL for word in ("--set", change)]


def _train(place, recipe, run, *more):
    return main(["train", recipe, "--data", str(place / "data"), "--run", str(place / run), "--cache", str(place / "c"),
                 "--device", "cpu", "--set", "schedule.budget_minutes=0", *OPTIONS, *more])  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Phantoms to train on in `data`, and one in `unseen`."""
    folder = tmp_path_factory.mktemp("cgsamr")
    for where, seeds in (("data", (0, 1)), ("unseen", (7,))):
        for seed in seeds:
            write_phantom(make_phantom((40, 44, 36), seed), folder / where, f"phantom-{seed}")
    return folder


@pytest.mark.parametrize("recipe", ["cgsamr_compact", "ucgsamr_compact"])
def test_a_resumed_run_is_that_of_an_unbroken_one(place, recipe):
    # The rate is the same in all four steps, whatever number of steps a sitting was told.
    for steps, more in ((2, []), (4, ["--resume"])):
        code = _train(place, recipe, f"{recipe}-parts", "--set", f"schedule.steps={steps}", "--set",
                      "optimizer.constant_share=0.99", *more)  # fmt: skip
        assert code == ExitCode.OK
    assert _train(place, recipe, f"{recipe}-again", "--set", "schedule.steps=4", "--set",
                  "optimizer.constant_share=0.99") == ExitCode.OK  # fmt: skip
    states = [load_state(place / f"{recipe}-{name}" / LAST) for name in ("parts", "again")]
    assert states[0].step == states[1].step == 4
    assert states[0].task_state == states[1].task_state
    for key, value in states[0].average.items():
        assert torch.equal(value, states[1].average[key]), key
    for network in states[0].networks:
        for key, value in states[0].networks[network].items():
            assert torch.equal(value, states[1].networks[network][key]), key
    assert list((place / f"{recipe}-parts" / "samples").glob("*.png"))


def _export(place, weights, *more):
    return main(["export", str(place / "run"), "--data", str(place / "data"), "--cache", str(place / "c"),
                 "--weights", str(weights), "--model", "maker", "--device", "cpu", *more])  # fmt: skip


@pytest.fixture(scope="module")
def weights(place):
    """A folder with the model of a short run."""
    # Running means need some steps before a network in use does what it learnt.
    more = ["--set", "schedule.steps=25", "--set", "optimizer.ema=0.5"]
    assert _train(place, "cgsamr_compact", "run", *more) == ExitCode.OK
    assert _export(place, place / "w", "--score-on", str(place / "unseen")) == ExitCode.OK
    return place / "w"


class TestExport:
    def test_it_is_a_model_with_its_atlas_and_scores(self, weights):
        manifest = read_manifest(weights)
        entry = manifest.entry("maker")
        assert entry.spec.kind == "cgsamr"
        assert set(entry.files) == {"torch", "atlas"}
        assert manifest.default is None
        scores = manifest.lineage.scores_of(entry.sha256)
        assert {"accuracy_tumour", "accuracy_oedema", "ssim_brain", "psnr_brain"} <= set(scores.mean)

    def test_it_makes_exams(self, weights, place):
        arguments = ["simulate", "--lesions", str(place / "unseen"), "--output", str(place / "exams")]
        assert main([*arguments, "--weights", str(weights), "--device", "cpu"]) == ExitCode.OK
        assert main(["info", "--weights", str(weights)]) == ExitCode.OK

    def test_a_run_may_start_from_it(self, weights, place):
        more = ["--set", "schedule.steps=1", "--weights", str(weights), "--start", "maker"]
        assert _train(place, "cgsamr_compact", "later", *more) == ExitCode.OK

    def test_the_same_is_not_worse_than_itself(self, weights, place):
        assert _export(place, weights, "--score-on", str(place / "unseen")) == ExitCode.OK

    @pytest.mark.parametrize("option", [["--make-default"], ["--flip-average"], ["--specialist-of", "x"]])
    def test_options_of_completing_models_are_refused(self, weights, place, option):
        assert _export(place, weights, "--force", *option) == ExitCode.USAGE
