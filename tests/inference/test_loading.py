"""Models that make some sequences in another's place: opened, run, recorded, and exported."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from app.cli import main
from app.core.constants import MODALITIES
from app.core.errors import CaseError, ExitCode, UsageError, WeightsError
from app.data.discovery import inspect
from app.data.loading import load_inputs
from app.data.phantom import make_phantom, write_phantom
from app.evaluation.scoring import Scores
from app.inference.pipeline import predict, prepare
from app.inference.synthesizer import Synthesizer
from app.networks.architectures import RefinerConfig
from app.networks.refiner import Refiner
from app.preprocessing.normalization import Normalization
from app.registry.manifest import change_spec, read_manifest
from app.training.config import load_recipe
from app.training.data.first_stage import StageOne
from app.training.tasks.synthesis import SynthesisTask
from tests.networks.small_models import VOLUME, add_expert, save_refiner
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


class TestSynthesis:
    def test_each_sequence_is_made_by_whom_it_is_left_to(self, weights, write_subject, tmp_path):
        files = write_subject(tmp_path / "in" / "sub01", lacks=())
        both, alone, expert = opened(weights), opened(weights, specialists=False), opened(weights, "expert")
        made = {m: voxels(both(files, m)) for m in ("t2f", "t1c")}
        assert np.array_equal(made["t2f"], voxels(expert(files, "t2f")))
        assert not np.array_equal(made["t2f"], voxels(alone(files, "t2f")))
        assert np.array_equal(made["t1c"], voxels(alone(files, "t1c")))
        assert b"expert" in both(files, "t2f").header["descrip"].item()
        assert b"tiny" in both(files, "t1c").header["descrip"].item()

    def test_a_specialist_makes_nothing_else(self, weights, write_subject, tmp_path):
        files = write_subject(tmp_path / "in" / "sub01", lacks=("t1c",))
        with pytest.raises(CaseError, match=r"'expert' makes t2f and not t1c"):
            opened(weights, "expert")(files)

    def test_a_network_that_makes_several_is_loaded_once(self, weights):
        add_expert(weights, makes=("t2f", "t2w"))
        change_spec(read_manifest(weights).entry("tiny"), specialists={"t2f": "expert", "t2w": "expert"})
        model = opened(weights).model
        assert model.specialists["t2f"] is model.specialists["t2w"]
        assert model.makes == MODALITIES
        assert model.specialists["t2f"].makes == ("t2f", "t2w")

    def test_views_are_joined_as_asked_by_both(self, weights):
        model = opened(weights, fusion="median", flip_average=True).model
        assert model.model_for("t2f").joining == model.model_for("t1c").joining

    @pytest.mark.parametrize("refine", [None, True])
    def test_what_a_specialist_makes_passes_through_no_refiner_of_another(self, weights, subject, refine):
        made = Refiner(RefinerConfig((8, 8, 8)))
        save_refiner(weights, "sharp", made.config, made.state_dict(), VOLUME, (32, 32, 32), 0.25)
        change_spec(read_manifest(weights).entry("tiny"), refiner="sharp", refine=True)
        model = opened(weights, refine=refine).model
        assert model.model_for("t1c").refiner is not None
        assert model.model_for("t2f").refiner is None

    def test_a_refiner_learns_on_what_the_first_stage_makes_itself(self, weights, subject):
        assert StageOne(read_manifest(weights).entry("tiny"), "cpu").model.specialists == {}
        with pytest.raises(UsageError, match=r"'expert' makes t2f only; .*--stage-one"):
            StageOne(read_manifest(weights).entry("expert"), "cpu")

    @pytest.mark.parametrize(
        ("entry", "reason"),
        [
            ({"name": "gone"}, r"lacks 'gone', which makes t2f for 'tiny'.*--no-specialists"),
            ({"name": "regression"}, "lacks 'regression'"),
            ({"makes": ("t1c",)}, "'expert' cannot make t2f for 'tiny': it makes t1c"),
            ({"normalization": Normalization("volume", background=-2.0)}, "'expert' cannot make t2f"),
        ],
    )
    def test_one_that_cannot_do_it_is_named(self, weights, subject, entry, reason):
        name = entry.pop("name", "expert")
        add_expert(weights, **entry)
        change_spec(read_manifest(weights).entry("tiny"), specialists={"t2f": name})
        with pytest.raises(WeightsError, match=reason):
            opened(weights)
        assert opened(weights, specialists=False)({m: str(f) for m, f in subject.items()}) is not None

    def test_scores_for_both_are_the_same(self, weights, subject):
        model = opened(weights).model
        _, _, volumes = load_inputs(inspect("sub01", {m: [f] for m, f in subject.items()}), "skip")
        one, other = prepare(volumes, model), prepare(volumes, model.model_for("t2f"))
        maker = model.model_for("t2f")
        assert np.array_equal(predict(one, "t2f", maker).scores, predict(other, "t2f", maker).scores)


class TestRuns:
    def _run(self, weights, tmp_path, *more):
        return main(["synthesize", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--weights",
                     str(weights), "--model", "tiny", "--device", "cpu", "--report-dir", str(tmp_path / "report"),
                     *more])  # fmt: skip

    def _record(self, tmp_path):
        return json.loads((tmp_path / "report" / "tetrad-run.json").read_text())

    def test_a_run_says_who_made_what(self, weights, write_subject, tmp_path):
        write_subject(tmp_path / "in" / "sub01", lacks=("t1c", "t2f"))
        assert self._run(weights, tmp_path, "--complete-all") == ExitCode.OK
        record = self._record(tmp_path)
        entry = read_manifest(weights).entry("expert")
        assert record["model"]["specialists"] == {"t2f": {"name": "expert", "sha256": entry.sha256}}
        made = {o["target"]: (o["model"], o["weights_sha256"]) for o in record["subjects"][0]["outputs"]}
        assert made["t2f"] == ("expert", entry.sha256)
        assert made["t1c"][0] == "tiny"
        assert "t2f by expert" in (tmp_path / "report" / "tetrad-run.html").read_text()
        assert self._run(weights, tmp_path, "--complete-all") == ExitCode.OK
        (again,) = self._record(tmp_path)["subjects"]
        assert (again["status"], again["warnings"]) == ("kept", [])

    def test_several_devices_say_the_same(self, weights, subject, tmp_path):
        assert self._run(weights, tmp_path, "--device", "cpu,cpu") == ExitCode.OK
        record = self._record(tmp_path)
        assert record["model"]["specialists"]["t2f"]["name"] == "expert"
        assert record["subjects"][0]["outputs"][0]["model"] == "expert"

    def test_without_them_all_is_made_by_one(self, weights, subject, tmp_path):
        assert self._run(weights, tmp_path, "--no-specialists") == ExitCode.OK
        record = self._record(tmp_path)
        assert record["model"]["specialists"] == {}
        assert record["subjects"][0]["outputs"][0]["model"] == "tiny"
        # What is there was made in another way than this run would make it.
        assert self._run(weights, tmp_path) == ExitCode.OK
        assert any("--overwrite" in w for w in self._record(tmp_path)["subjects"][0]["warnings"])

    def test_the_regression_stands_in_where_it_breaks(self, weights, subject, tmp_path, monkeypatch):
        def broken(*_, **__):
            raise MemoryError("none left")

        monkeypatch.setattr("app.inference.backends.DeviceBackend.predict", broken)
        assert self._run(weights, tmp_path) == ExitCode.OK
        (told,) = self._record(tmp_path)["subjects"]
        assert told["outputs"][0]["model"] == "regression"
        assert "expert could not make t2f" in " ".join(told["warnings"])

    def test_info_names_them(self, weights, capsys):
        assert main(["info", "--weights", str(weights)]) == ExitCode.OK
        shown = capsys.readouterr().out
        assert "t2f by expert" in shown
        assert "makes t2f only" in shown


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
            for m in targets or model.makes:
                value = similarity.get((model.model_for(m).identity.name, m), 0.6)
                values = {"official_healthy": 0.9, "official_tumour": 0.99, "ssim_brain": value}
                rows.append(Scores("phantom-7", m, values))
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
        assert mine.makes == ("t2f",)
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
        with pytest.raises(UsageError, match=r"'expert' makes t2f and not t1c, t1n, t2w; .*data\.makes"):
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


def test_a_model_of_its_own_leaves_nothing_to_others(weights_dir):
    model = opened(weights_dir).model
    assert model.makes == MODALITIES
    assert all(model.model_for(m) is model for m in MODALITIES)
