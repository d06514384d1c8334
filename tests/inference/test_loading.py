"""Models opened from a manifest: its own ways and those that are asked for, refiners, specialists."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from app.cli import main
from app.cli.commands.info import describe
from app.core.config import WEIGHTS_DIR
from app.core.constants import MODALITIES
from app.core.errors import CaseError, ExitCode, UsageError, WeightsError
from app.inference.slicewise.view_fusion import THINNED_STEP, FusionOptions
from app.inference.synthesizer import Synthesizer
from app.preprocessing.normalization import Normalization
from app.registry.manifest import change_spec, read_manifest
from app.registry.spec import FirstStage
from app.training.data.first_stage import StageOne
from tests.networks.small_models import VOLUME, add_expert, new_refiner, save_refiner


def opened(weights, model="tiny", **options):
    return Synthesizer(model, weights=weights, device="cpu", precision="fp32", **options)


def voxels(image):
    return np.asarray(image.dataobj)


class TestFusion:
    @pytest.fixture
    def weights(self, confident_weights):
        return confident_weights

    def test_the_models_own_way_is_taken_and_can_be_overruled(self, weights, tmp_path):
        folder = shutil.copytree(weights, tmp_path / "w")
        form = json.loads((folder / "manifest.json").read_text())
        form["models"]["unet"] |= {"fusion": "confidence", "flip_average": True}
        (folder / "manifest.json").write_text(json.dumps(form))
        assert opened(folder, "unet").model.fusion == FusionOptions("confidence", flip=True, step=THINNED_STEP)
        assert opened(folder, "unet", fusion="mean").model.fusion == FusionOptions("mean", flip=True, step=THINNED_STEP)
        assert opened(folder, "unet", flip_average=False).model.fusion == FusionOptions("confidence")
        assert opened(weights, "unet").model.fusion == FusionOptions()
        fast = FusionOptions("confidence", step=THINNED_STEP)
        assert opened(folder, "unet", quality="fast").model.fusion == fast
        assert fast.name == "confidence+step2"
        assert opened(folder, "unet", quality="fast", flip_average=True).model.fusion == replace(fast, flip=True)
        assert opened(folder, "unet", quality="best").model.fusion == FusionOptions("confidence", flip=True)
        assert opened(weights, "unet", quality="best").model.fusion == FusionOptions(flip=True)
        assert opened(weights, "unet", quality="best", flip_average=False).model.fusion == FusionOptions()
        assert "views axial sagittal coronal (and mirrored)" in describe(folder)
        assert "mirrored" not in describe(weights)
        form["models"]["plain"]["fusion"] = "guess"
        (folder / "manifest.json").write_text(json.dumps(form))
        with pytest.raises(WeightsError, match=r"'plain' in .* cannot be used: generator\.fusion.*update Tetrad"):
            opened(folder, "plain")

    @pytest.mark.parametrize("options", [{"fusion": "confidence"}, {"with_error": True}])
    def test_a_model_without_a_head_says_what_to_do(self, weights, options):
        with pytest.raises(UsageError, match="does not say how sure it is; name one") as error:
            opened(weights, "plain", **options)
        assert "\n" not in str(error.value)

    def test_the_regression_has_no_views(self, weights):
        with pytest.raises(UsageError, match="no views to join"):
            Synthesizer("regression", weights=weights, fusion="median")
        with pytest.raises(UsageError, match="fusion='best'"):
            opened(weights, fusion="best")


class TestRefiners:
    def test_the_manifest_keeps_everything_else(self, refined_weights, onnx_weights_dir):
        before, after = (read_manifest(f).entry("tiny") for f in (onnx_weights_dir, refined_weights))
        assert after.spec == before.spec.model_copy(update={"refiner": "sharp", "refine": False})
        assert after.files == before.files
        assert read_manifest(refined_weights).default == read_manifest(onnx_weights_dir).default

    def test_the_manifest_decides_where_nobody_asks(self, refined_weights):
        def refiner_of(**asked):
            return Synthesizer("tiny", weights=refined_weights, device="cpu", **asked).model.refiner

        assert refiner_of() is None
        change_spec(read_manifest(refined_weights).entry("tiny"), refine=True)
        assert refiner_of().identity.name == "sharp"
        assert refiner_of(refine=False) is None

    def test_who_has_none_says_so(self, weights_dir, subject, tmp_path, capsys):
        arguments = ["synthesize", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"),
                     "--weights", str(weights_dir), "--device", "cpu", "--refine"]  # fmt: skip
        for model in ("tiny", "regression"):
            assert main([*arguments, "--model", model]) == ExitCode.USAGE
            assert f"model '{model}' has no refiner" in capsys.readouterr().err
        assert not list(tmp_path.glob("out/*"))

    def test_a_refiner_that_is_gone_or_sees_other_scores(self, refined_weights):
        entry = read_manifest(refined_weights).entry("tiny")
        made = new_refiner()
        other = Normalization("volume", background=-2.0)
        save_refiner(refined_weights, "other", made.config, made.state_dict(), other, (32, 32, 32), 0.25)
        change_spec(entry, refiner="other")
        with pytest.raises(WeightsError, match="sees other scores"):
            Synthesizer("tiny", weights=refined_weights, device="cpu", refine=True)
        change_spec(entry, refiner="gone")
        with pytest.raises(WeightsError, match=r"lacks 'gone'.*--no-refine"):
            Synthesizer("tiny", weights=refined_weights, device="cpu", refine=True)

    def test_a_refiner_of_other_weights_is_refused(self, refined_weights):
        manifest = read_manifest(refined_weights)
        entry = manifest.entry("tiny")
        change_spec(manifest.entry("sharp"), first_stage={"model": "tiny", "sha256": entry.sha256})
        assert Synthesizer("tiny", weights=refined_weights, device="cpu", refine=True).model.refiner is not None
        change_spec(manifest.entry("sharp"), first_stage={"model": "tiny", "sha256": "f" * 64})
        with pytest.raises(WeightsError, match="other weights of 'tiny'"):
            Synthesizer("tiny", weights=refined_weights, device="cpu", refine=True)

    def test_it_is_no_model_of_its_own(self, refined_weights):
        with pytest.raises(WeightsError, match="refines what another makes"):
            Synthesizer("sharp", weights=refined_weights, device="cpu")

    def test_a_width_that_does_not_fit_is_named(self, refined_weights):
        path = refined_weights / "manifest.json"
        form = json.loads(path.read_text())
        form["models"]["sharp"]["architecture"]["widths"] = [8, 16, 8]
        path.write_text(json.dumps(form))
        with pytest.raises(WeightsError, match="does not fit the architecture"):
            Synthesizer("tiny", weights=refined_weights, device="cpu", refine=True)


class TestSpecialists:
    @pytest.fixture
    def weights(self, specialist_weights):
        return specialist_weights

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
        assert model.targets == MODALITIES
        assert model.specialists["t2f"].targets == ("t2f", "t2w")

    def test_a_refiner_learns_on_what_specialists_make_too(self, weights):
        stage_one = StageOne(read_manifest(weights).entry("tiny"), "cpu")
        assert stage_one.model.specialists["t2f"].name == "expert"
        assert stage_one.described.specialists == {"t2f": read_manifest(weights).entry("expert").sha256}
        with pytest.raises(UsageError, match=r"'expert' makes t2f only; .*--stage-one"):
            StageOne(read_manifest(weights).entry("expert"), "cpu")

    def test_a_refiner_that_was_trained_behind_them_refines_their_volumes(self, weights):
        manifest, made = read_manifest(weights), new_refiner()
        tiny, expert = manifest.entry("tiny"), manifest.entry("expert")
        for name, specialists in (("all", {"t2f": expert.sha256}), ("alone", None)):
            save_refiner(weights, name, made.config, made.state_dict(), VOLUME, (32, 32, 32), 0.25,
                         first_stage=FirstStage(model="tiny", sha256=tiny.sha256, specialists=specialists))  # fmt: skip
        change_spec(tiny, refiner="all")
        model = opened(weights, refine=True).model
        assert model.specialists["t2f"].refiner is model.refiner
        assert model.model_for("t2f").name == "expert+all"
        assert opened(weights).model.specialists["t2f"].refiner is None
        change_spec(read_manifest(weights).entry("tiny"), refiner="alone")
        assert opened(weights, refine=True).model.specialists["t2f"].refiner is None
        other = FirstStage(model="tiny", sha256=tiny.sha256, specialists={"t2f": "f" * 64})
        change_spec(read_manifest(weights).entry("alone"), first_stage=other)
        with pytest.raises(WeightsError, match="behind other specialists of 'tiny'"):
            opened(weights, refine=True)

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


class TestExchanged:
    """The shipped weights do not say whose they are; the lineage does."""

    @pytest.fixture
    def weights(self, tmp_path):
        """The shipped models, their files shared."""
        folder = tmp_path / "weights"
        folder.mkdir()
        for file in WEIGHTS_DIR.iterdir():
            if file.suffix in {".safetensors", ".onnx"}:
                os.link(file.resolve(), folder / file.name)
            else:
                shutil.copy(file, folder)
        return folder

    @staticmethod
    def _rewrite(folder, change):
        form = json.loads((folder / "manifest.json").read_text())
        change(form["models"])
        (folder / "manifest.json").write_text(json.dumps(form))

    @staticmethod
    def _files(models):
        one, two = models["unet-t1n"], models["unet-t2w"]
        one["files"], two["files"] = two["files"], one["files"]

    @staticmethod
    def _names(models):
        models["unet-t1n"], models["unet-t2w"] = models["unet-t2w"], models["unet-t1n"]

    @staticmethod
    def _specialists(models):
        models["unet"]["specialists"] |= {"t1n": "unet-t2w", "t2w": "unet-t1n"}

    @staticmethod
    def _names_and_specialists(models):
        TestExchanged._names(models)
        TestExchanged._specialists(models)

    @staticmethod
    def _targets(models):
        models["unet-t1n"]["targets"] = ["t2w"]

    @pytest.mark.parametrize("change", ["_files", "_names", "_specialists", "_names_and_specialists", "_targets"])
    @pytest.mark.parametrize("backend", ["torch", "onnx"])
    def test_two_specialists_that_were_exchanged_are_refused(self, weights, change, backend):
        self._rewrite(weights, getattr(self, change))
        with pytest.raises(WeightsError):
            opened(weights, "unet", backend=backend)

    @pytest.mark.parametrize("change", ["_files", "_names_and_specialists"])
    def test_so_they_are_where_files_do_not_say_whose_they_are(self, weights, change, monkeypatch):
        """As those of version 0.1.0: their trainings are known by checksum."""
        monkeypatch.setattr("app.inference.loading.check_metadata", lambda entry: None)
        self._rewrite(weights, getattr(self, change))
        with pytest.raises(WeightsError, match="fetch the weights again"):
            opened(weights, "unet")

    def test_graphs_that_were_exchanged_are_refused(self, weights):
        def exchange(models):
            one, two = (models[name]["files"] for name in ("unet-t1n", "unet-t2w"))
            one["onnx"], two["onnx"] = two["onnx"], one["onnx"]

        assert opened(weights, "unet-t1n", backend="onnx").model.targets == ("t1n",)
        self._rewrite(weights, exchange)
        with pytest.raises(WeightsError, match=r"is not the network of unet-t1n\.safetensors"):
            opened(weights, "unet-t1n", backend="onnx")
        assert opened(weights, "unet-t1n").model.targets == ("t1n",)

    def test_a_copy_of_another_name_is_taken(self, weights):
        """Of a file that does not say whose it is."""
        self._rewrite(weights, lambda models: models.update(mine={**models["unet"], "specialists": {}}))
        assert opened(weights, "mine").model.targets == MODALITIES
