"""Models that make some sequences in another's place: exported where they are better."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from app.cli import main
from app.core.errors import ExitCode, UsageError
from app.data.phantom import make_phantom, write_phantom
from app.evaluation.scoring import VolumeScores
from app.inference.synthesizer import Synthesizer
from app.registry.manifest import change_spec, read_manifest
from app.training.config import load_recipe
from app.training.tasks.synthesis import SynthesisTask
from tests.networks.small_models import add_expert
from tests.training.helpers import SMALL


@pytest.fixture
def weights(weights_dir, tmp_path):
    """The weights of all tests, where `tiny` leaves T2-FLAIR to `expert`."""
    folder = shutil.copytree(weights_dir, tmp_path / "weights")
    add_expert(folder)
    change_spec(read_manifest(folder).entry("tiny"), specialists={"t2f": "expert"})
    return folder


def opened(weights, model="tiny", **options):
    return Synthesizer(model, weights=weights, device="cpu", precision="fp32", **options)


def voxels(image):
    return np.asarray(image.dataobj)


@pytest.fixture(scope="module")
def trained(training_data, training_cache, tmp_path_factory):
    """Two runs of two steps, `run` of T2-FLAIR alone and `all`, and a subject that they have not seen."""
    folder = tmp_path_factory.mktemp("expert")
    write_phantom(make_phantom((40, 44, 36), 7), folder / "unseen", "phantom-7")
    changes = [*SMALL, "losses.tversky=0", "schedule.steps=2", "schedule.targets_per_batch=1", "data.views=['axial']"]
    for run, makes in (("run", '["t2f"]'), ("all", '["t1c", "t1n", "t2f", "t2w"]')):
        settings = [part for change in [*changes, f"data.targets={makes}"] for part in ("--set", change)]
        code = main(["train", "smoke", "--data", str(training_data), "--run", str(folder / run), "--cache",
                     str(training_cache), "--device", "cpu", *settings])  # fmt: skip
        assert code == ExitCode.OK
    return folder


class TestExport:
    @pytest.fixture
    def scored(self, monkeypatch):
        """SSIM per model and sequence instead of real scores; 0.6 where nothing is said."""
        similarity = {}

        def scores(model, _cases, _masks, targets=None):
            rows = []
            for m in targets or model.targets:
                value = similarity.get((model.model_for(m).identity.name, m), 0.6)
                values = {"official_healthy": 0.9, "official_tumour": 0.99, "ssim_brain": value}
                rows.append(VolumeScores("phantom-7", m, values))
            return rows

        monkeypatch.setattr("app.training.validation.score_missing_sequences", scores)
        monkeypatch.setattr("app.registry.onnx_export.to_onnx", lambda *_: b"graph")
        return similarity

    @pytest.fixture(autouse=True)
    def _known(self, training_data, training_cache):
        self._data = ["--data", str(training_data), "--cache", str(training_cache)]

    def _export(self, trained, weights, *more, run="run", name="mine"):
        return main(["export", str(trained / run), *self._data, "--weights", str(weights), "--device", "cpu",
                     "--model", name, "--score-on", str(trained / "unseen"), *more])  # fmt: skip

    @pytest.fixture
    def plain(self, weights_dir, tmp_path):
        return shutil.copytree(weights_dir, tmp_path / "w")

    def test_from_data_to_an_exam_that_it_completes(self, trained, plain, subject, monkeypatch):
        monkeypatch.setattr("app.registry.onnx_export.to_onnx", lambda *_: b"graph")
        assert self._export(trained, plain, "--specialist-of", "tiny", "--force") == ExitCode.OK
        manifest = read_manifest(plain)
        mine, tiny = manifest.entry("mine"), manifest.entry("tiny")
        assert mine.spec.targets == ("t2f",)
        assert set(read_manifest(plain).lineage.scores_of(mine.sha256).by_target) == {"t2f"}
        assert tiny.spec.specialists == {"t2f": "mine"}
        assert manifest.default == "regression"
        case = {m: str(f) for m, f in subject.items()}
        assert b"mine" in opened(plain)(case).header["descrip"].item()

    def test_it_must_make_its_sequence_better_than_who_leaves_it(self, trained, plain, scored, capsys):
        scored["tiny", "t2f"], scored["tiny", "t1c"] = 0.61, 0.1
        assert self._export(trained, plain, "--specialist-of", "tiny") == ExitCode.USAGE
        assert "is worse than 'tiny'" in capsys.readouterr().err
        assert "mine" not in read_manifest(plain).entries
        scored["candidate", "t2f"] = 0.62
        assert self._export(trained, plain, "--specialist-of", "tiny") == ExitCode.OK
        # The next must be better than this one, not than `tiny` alone.
        scored["candidate", "t2f"] = 0.615
        assert self._export(trained, plain, "--specialist-of", "tiny", name="other") == ExitCode.USAGE
        scored["candidate", "t2f"] = 0.63
        assert self._export(trained, plain, "--specialist-of", "tiny", name="other") == ExitCode.OK
        assert read_manifest(plain).entry("tiny").spec.specialists == {"t2f": "other"}

    def test_a_new_default_must_be_better_than_the_old_with_its_specialists(self, trained, plain, scored, capsys):
        options = {"run": "all", "name": "other"}
        assert self._export(trained, plain, "--make-default", "--force", run="all", name="whole") == ExitCode.OK
        scored["candidate", "t2f"] = 0.7
        assert self._export(trained, plain, "--specialist-of", "whole") == ExitCode.OK
        scored["candidate", "t2f"] = 0.65
        assert self._export(trained, plain, "--make-default", **options) == ExitCode.USAGE
        assert "ssim_brain 0.6125 (before 0.6250)" in capsys.readouterr().err
        scored["candidate", "t1c"] = 0.7
        assert self._export(trained, plain, "--make-default", **options) == ExitCode.OK
        assert not read_manifest(plain).entry("other").spec.specialists

    def test_a_new_network_of_the_same_name_keeps_its_specialists(self, trained, plain, scored):
        options = {"run": "all", "name": "whole"}
        assert self._export(trained, plain, **options) == ExitCode.OK
        scored["candidate", "t2f"] = 0.7
        assert self._export(trained, plain, "--specialist-of", "whole") == ExitCode.OK
        # What the specialist makes does not count, for or against.
        scored["candidate", "t2f"] = 0.5
        assert self._export(trained, plain, **options) == ExitCode.OK
        assert read_manifest(plain).entry("whole").spec.specialists == {"t2f": "mine"}
        scored["candidate", "t2f"], scored["candidate", "t1c"] = 0.9, 0.59
        assert self._export(trained, plain, **options) == ExitCode.USAGE

    def test_a_part_takes_no_place_where_all_is_needed(self, trained, plain, scored, tmp_path, capsys):
        before = (plain / "manifest.json").read_bytes()
        assert self._export(trained, plain, "--force", name="tiny") == ExitCode.USAGE
        assert "'tiny' of" in (told := capsys.readouterr().err)
        assert "makes t1c, t1n, t2w and the run does not" in told
        assert (plain / "manifest.json").read_bytes() == before
        assert self._export(trained, tmp_path / "new", "--force") == ExitCode.USAGE
        assert "cannot be the default" in capsys.readouterr().err
        assert not (tmp_path / "new").exists()

    def test_a_head_is_taught_on_what_its_network_makes(self, weights):
        recipe = load_recipe("confidence", SMALL)
        with pytest.raises(UsageError, match=r"'expert' makes t2f and not t1c, t1n, t2w; .*data\.targets"):
            SynthesisTask(recipe, torch.device("cpu")).load_initial_weights(read_manifest(weights).entry("expert"))

    @pytest.mark.parametrize(
        ("run", "arguments", "reason"),
        [
            ("run", ["--make-default"], "makes t2f only and cannot be the default"),
            ("run", ["--specialist-of", "tiny", "--make-default"], "leave out --make-default"),
            ("run", ["--specialist-of", "mine"], "no model 'mine'"),
            ("run", ["--specialist-of", "regression"], "cannot be a specialist of 'regression'"),
            ("all", ["--specialist-of", "tiny"], "a specialist makes some of the four"),
        ],
    )
    def test_what_cannot_be(self, trained, plain, capsys, run, arguments, reason):
        code = self._export(trained, plain, *arguments, run=run)
        assert code in (ExitCode.USAGE, ExitCode.WEIGHTS)
        assert reason in capsys.readouterr().err
        assert "mine" not in read_manifest(plain).entries
