"""`weights rescore`: the lineage tells what a model does today."""

from __future__ import annotations

import shutil

import pytest

from app.cli import main
from app.core.errors import ExitCode
from app.networks.architectures import RefinerConfig
from app.networks.refiner import Refiner
from app.registry.lineage import TrainingRecord
from app.registry.manifest import change_spec, read_manifest
from app.training.data.cache import NORMALIZATION
from tests.networks.small_models import record_of, save_refiner, scores_of


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """A weights folder with a model that has no scores."""
    folder = tmp_path_factory.mktemp("rescored") / "w"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("app.registry.onnx_export.to_onnx", lambda *_: b"graph")
        export = ["export", str(trained / "run"), "--data", str(trained / "data"), "--weights", str(folder)]
        assert main([*export, "--model", "mine", "--force"]) == ExitCode.OK
        assert main([*export, "--model", "scored", "--score-on", str(trained / "unseen")]) == ExitCode.OK
    return folder


@pytest.fixture
def weights(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "w")


def _rescore(weights, on, name="mine") -> int:
    return main(["weights", "rescore", str(weights), "--model", name, "--score-on", str(on), "--device", "cpu"])


def test_the_scores_are_those_of_an_export(trained, weights):
    before = record_of(weights, "mine")
    assert before.scores is None
    assert _rescore(weights, trained / "unseen") == ExitCode.OK
    # Both names have the same weights, and one record.
    assert scores_of(weights, "mine") == scores_of(weights, "scored")
    after = record_of(weights, "mine")
    assert after.scores.subjects == ("phantom-7",)
    assert set(after.scores.by_target) == {"t1c", "t1n", "t2f", "t2w"}
    assert after.model_copy(update={"scores": None}) == before


def test_of_a_refined_model_they_are_its_refiners(trained, weights):
    refiner = Refiner(RefinerConfig((8, 8)))
    # As it begins it changes nothing.
    state = {key: value + 0.05 for key, value in refiner.state_dict().items()}
    save_refiner(weights, "second", refiner.config, state, NORMALIZATION, (16, 16, 16), 0.1,
                 training=TrainingRecord(model="second", subjects=("elsewhere",)))  # fmt: skip
    change_spec(read_manifest(weights).entry("mine"), refiner="second", refine=True)
    assert _rescore(weights, trained / "unseen") == ExitCode.OK
    scores = scores_of(weights, "second")
    assert record_of(weights, "mine").scores is None
    assert scores.unrefined is not None
    assert scores.unrefined["ssim_brain"] != scores.mean["ssim_brain"]


@pytest.mark.parametrize(
    "folder,message", [("data", "was trained on; score on patients"), ("run", "holds no complete subject")]
)
def test_exams_that_cannot_judge(trained, weights, capsys, folder, message):
    assert _rescore(weights, trained / folder) == ExitCode.USAGE
    assert message in capsys.readouterr().err
    assert record_of(weights, "mine").scores is None


def test_a_model_that_nobody_knows_the_training_of(trained, weights, capsys):
    (weights / "lineage.json").write_text('{"schema": 1, "subject_lists": {}, "trainings": {}}')
    assert _rescore(weights, trained / "unseen") == ExitCode.USAGE
    assert "does not know how 'mine' was trained" in capsys.readouterr().err
