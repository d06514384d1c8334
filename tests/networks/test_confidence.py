"""Confidence from the head to the file: what the head gives, how views are joined by it, and what a user gets."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from app.cli import main
from app.cli.info import describe
from app.core.config import FUSIONS, RuntimeOptions
from app.core.constants import VIEWS
from app.core.errors import UsageError, WeightsError
from app.data.nifti_reader import load_volume
from app.inference.backends import open_backend
from app.inference.device import Machine, choose_runtime
from app.inference.pipeline import predict, prepare
from app.inference.slice_predictor import SlicePredictor
from app.inference.synthesizer import Synthesizer
from app.inference.view_fusion import FusionOptions
from app.networks import config_from_json, new_generator
from app.networks.architectures import HfGanConfig, UNetConfig
from app.networks.confidence import ConfidenceHead
from app.preprocessing.normalization import Normalization
from app.preprocessing.slices import Canvas
from app.registry.checkpoints import load_generator
from app.registry.manifest import read_manifest
from app.registry.onnx_export import export_onnx
from tests.networks.small_models import save_generator

#: Of unlike sizes, and not as large as the brain, so that windows grow and odd margins occur.
CANVAS = Canvas({"axial": (48, 48), "sagittal": (48, 32), "coronal": (32, 48)})
WIDTHS = (8, 16, 16, 16)
CONFIGS = {
    "unet": UNetConfig(WIDTHS, confidence="likelihood"),
    "bounded": UNetConfig(WIDTHS, confidence="bounded", confidence_scale=0.1),
    "hybrid": HfGanConfig(width=16, confidence="likelihood"),
}


@pytest.fixture(scope="module")
def weights(weights_dir, tmp_path_factory):
    """Untrained generators with a head, a small one with its ONNX, and one without, as `plain`."""
    folder = tmp_path_factory.mktemp("confident")
    shutil.copytree(weights_dir, folder, dirs_exist_ok=True)
    intensity = read_manifest(folder).entry("regression").path_of("intensity").read_bytes()
    for name, config in {**CONFIGS, "plain": UNetConfig(WIDTHS)}.items():
        torch.manual_seed(1)
        network = new_generator(config)
        if network.confidence is not None:
            # An untrained head says nearly the same everywhere.
            with torch.no_grad():
                network.confidence[2].weight *= 4
        entry = save_generator(folder, name, config, network.state_dict(), Normalization("volume"), CANVAS, VIEWS,
                               intensity=intensity)  # fmt: skip
        if name == "unet":
            export_onnx(entry)
    return folder


def _open(weights, name="unet", **options):
    return Synthesizer(name, weights=weights, device="cpu", **{"precision": "fp32", **options}).model


def _volumes(subject):
    return {m: load_volume(f) for m, f in subject.items()}


def _mirrored(volumes):
    return {m: replace(v, data=np.ascontiguousarray(v.data[::-1])) for m, v in volumes.items()}


class TestHead:
    @pytest.mark.parametrize("kind,scale,least", [("bounded", 0.03, 0.03), ("likelihood", 1.0, 1e-4)])
    def test_it_expects_a_positive_error_in_float32(self, kind, scale, least):
        head = ConfidenceHead(8, kind, scale).bfloat16()
        error = head(1e3 * torch.randn(2, 8, 16, 16).bfloat16())
        assert error.dtype == torch.float32
        assert error.shape == (2, 1, 16, 16)
        assert torch.isfinite(error).all()
        assert error.min() >= least

    @pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
    def test_it_changes_nothing_of_the_image(self, config):
        torch.manual_seed(0)
        network = new_generator(config).eval()
        bare = new_generator(replace(config, confidence="none")).eval()
        assert set(network.state_dict()) - set(bare.state_dict()) == {
            f"confidence.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")
        }
        bare.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("confidence")})
        inputs = torch.randn(2, 4, 32, 48), torch.ones(2, 4), torch.tensor([0, 3]), torch.tensor([0, 2])
        with torch.inference_mode():
            features = network.features(*inputs)
            assert torch.equal(network.image(features), bare(*inputs))
            assert torch.equal(network(*inputs), bare(*inputs))
            assert network.error(features).std() > 0
            with pytest.raises(ValueError, match="no head"):
                bare.error(features)

    @pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
    def test_its_kind_travels_in_the_manifests_form(self, config):
        assert config_from_json(json.loads(json.dumps(config.to_json()))) == config

    def test_a_form_written_before_there_were_heads_still_reads(self):
        assert config_from_json({"network": "unet", "widths": [8, 8], "background": -1.0}).confidence == "none"


class TestRunners:
    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("fusion", FUSIONS)
    @pytest.mark.parametrize("name", CONFIGS)
    def test_z_scores_of_the_device_give_the_same_bits(self, weights, subject, name, fusion, flip, monkeypatch):
        model = _open(weights, name, fusion=fusion, flip_average=flip, with_error=True)
        prepared = prepare(_volumes(subject), model)
        plain = predict(prepared, "t2f", model)
        monkeypatch.setattr(SlicePredictor, "normalizes", True)
        on_device = predict(prepared, "t2f", model)
        np.testing.assert_array_equal(on_device.volume, plain.volume)
        np.testing.assert_array_equal(on_device.error, plain.error)
        assert plain.error[prepared.foreground].std() > 0

    def test_asking_for_the_error_leaves_the_image(self, weights, subject):
        prepared = prepare(_volumes(subject), _open(weights))
        alone, both = (predict(prepared, "t2f", _open(weights, with_error=e)) for e in (False, True))
        assert alone.error is None
        np.testing.assert_array_equal(alone.volume, both.volume)

    def test_without_the_wish_the_head_does_not_run(self, weights, subject, monkeypatch):
        model = _open(weights, fusion="median", flip_average=True)
        monkeypatch.setattr(ConfidenceHead, "forward", lambda *_: pytest.fail("the head was run"))
        predict(prepare(_volumes(subject), model), "t2f", model)

    @pytest.mark.parametrize("fusion", FUSIONS)
    def test_a_mirrored_exam_gives_a_mirrored_result(self, weights, subject, fusion):
        model = _open(weights, fusion=fusion, flip_average=True, with_error=True)
        volumes = _volumes(subject)
        # One voxel less, so that the brain's middle moves by half a voxel against the grid's.
        volumes = {m: replace(v, data=v.data[1:]) for m, v in volumes.items()}
        one, other = (predict(prepare(v, model), "t2f", model) for v in (volumes, _mirrored(volumes)))
        np.testing.assert_allclose(one.volume, other.volume[::-1], atol=1e-4)
        np.testing.assert_allclose(one.error, other.error[::-1], rtol=1e-3)
        plain = replace(model, fusion=FusionOptions(fusion))
        one, other = (predict(prepare(v, plain), "t2f", plain) for v in (volumes, _mirrored(volumes)))
        assert np.abs(one.volume - other.volume[::-1]).max() > 1e-2

    def test_the_surer_view_weighs_more(self, weights, subject):
        """By hand from single views, each run alone."""
        model = _open(weights, with_error=True)
        prepared = prepare(_volumes(subject), model)
        singles = [
            predict(prepared, "t2f", replace(model, spec=model.spec.model_copy(update={"views": (v,)})))
            for v in VIEWS
        ]  # fmt: skip
        fused = predict(prepared, "t2f", replace(model, fusion=FusionOptions("confidence")))
        weights_ = [1 / (np.square(s.error.astype(np.float64)) + 1e-6) for s in singles]
        expected = sum(w * s.volume for w, s in zip(weights_, singles, strict=True)) / sum(weights_)
        np.testing.assert_allclose(fused.volume, expected, atol=1e-3)
        assert np.abs(fused.volume - np.mean([s.volume for s in singles], axis=0)).max() > 1e-2

    @pytest.mark.parametrize("members,target", [((0, 1, 3), 2), ((2,), 1)])
    def test_onnx_gives_both_too(self, weights, members, target):
        entry = read_manifest(weights).entry("unet")
        batch = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 4, 48, 32)).astype(np.float32))
        asked = batch, members, target, torch.tensor([0, 1, 2]), None
        one, other = (
            open_backend(entry, choose_runtime(entry.files, Machine(), RuntimeOptions(backend=b)))
            for b in ("torch", "onnx")
        )
        both = other.run(*asked, with_error=True)
        for made, again in zip(one.run(*asked, with_error=True), both, strict=True):
            np.testing.assert_allclose(made, again, rtol=1e-3, atol=1e-3 * np.ptp(made.numpy()))
        alone = other.run(*asked)
        assert torch.equal(alone.image, both.image)
        assert alone.error is None

    def test_the_whole_way_by_onnx(self, weights, subject):
        options = {"fusion": "confidence", "flip_average": True, "with_error": True}
        volumes = _volumes(subject)
        one, other = (
            predict(prepare(volumes, m), "t2f", m)
            for m in (_open(weights, backend=b, **options) for b in ("torch", "onnx"))
        )
        # An untrained network is harsh: what rounds otherwise is seen in single voxels.
        for made, again in ((one.volume, other.volume), (one.error, other.error)):
            assert np.abs(made - again).mean() < 1e-3 * made.std()
            assert np.abs(made - again).max() < 0.05 * made.std()


class TestManifest:
    def test_the_models_own_way_is_taken_and_can_be_overruled(self, weights, tmp_path):
        folder = shutil.copytree(weights, tmp_path / "w")
        form = json.loads((folder / "manifest.json").read_text())
        form["models"]["unet"] |= {"fusion": "confidence", "flip_average": True}
        form["models"]["plain"]["fusion"] = "guess"
        (folder / "manifest.json").write_text(json.dumps(form))
        assert _open(folder).fusion == FusionOptions("confidence", flip=True)
        assert _open(folder, fusion="mean").fusion == FusionOptions("mean", flip=True)
        assert _open(folder, flip_average=False).fusion == FusionOptions("confidence")
        assert _open(weights).fusion == FusionOptions()
        assert "views axial sagittal coronal (and mirrored)" in describe(folder)
        assert "mirrored" not in describe(weights)
        with pytest.raises(WeightsError, match="'guess', which is not known"):
            _open(folder, "plain")

    @pytest.mark.parametrize("options", [{"fusion": "confidence"}, {"with_error": True}])
    def test_a_model_without_a_head_says_what_to_do(self, weights, options):
        with pytest.raises(UsageError, match="does not say how sure it is; name one") as error:
            _open(weights, "plain", **options)
        assert "\n" not in str(error.value)

    def test_the_regression_has_no_views(self, weights):
        with pytest.raises(UsageError, match="no views to join"):
            Synthesizer("regression", weights=weights, fusion="median")
        with pytest.raises(UsageError, match="fusion='best'"):
            _open(weights, fusion="best")


class TestCommand:
    @pytest.fixture
    def call(self, weights, tmp_path, subject, capsys):
        def run(*options, model="unet"):
            code = main(["synthesize", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--weights",
                         str(weights), "--model", model, "--precision", "fp32", "--device", "cpu",
                         *map(str, options)])  # fmt: skip
            messages = capsys.readouterr().err
            assert "Traceback" not in messages
            return code, messages

        return run

    def test_the_map_lies_beside_on_the_outputs_grid(self, call, tmp_path):
        place = tmp_path / "maps"
        assert call("--confidence-dir", place, "--fusion", "confidence", "--flip-average")[0] == 0
        assert [p.name for p in (tmp_path / "out").iterdir()] == ["sub01-t2f.nii.gz"]
        assert [p.name for p in place.iterdir()] == ["sub01-t2f-confidence.nii.gz"]
        made, sure = (nib.load(p) for p in (tmp_path / "out" / "sub01-t2f.nii.gz", next(place.iterdir())))
        np.testing.assert_array_equal(made.affine, sure.affine)
        assert sure.get_data_dtype() == np.float32
        assert bytes(sure.header["descrip"].item()).startswith(b"confidence of synthetic t2f")
        values, brain = sure.get_fdata(), made.get_fdata() > 0
        assert values[brain].min() > 0
        assert values.max() <= 1
        assert (values > 0).sum() < values.size
        assert values[brain].std() > 0

    def test_a_map_is_what_the_head_expects(self, call, tmp_path, weights, subject):
        call("--confidence-dir", tmp_path / "maps")
        model = _open(weights, with_error=True)
        prepared = prepare(_volumes(subject), model)
        expected = 1 / (1 + predict(prepared, "t2f", model).error)
        found = load_volume(tmp_path / "maps" / "sub01-t2f-confidence.nii.gz").data
        np.testing.assert_allclose(found, np.where(prepared.foreground, expected, 0), rtol=1e-3)

    @pytest.mark.parametrize("place", ["out", "out/maps", "in"])
    def test_never_into_the_output_or_the_input(self, call, tmp_path, place):
        code, messages = call("--confidence-dir", tmp_path / place)
        assert code == 2
        assert "for confidence" in messages
        assert not (tmp_path / "out" / "maps").exists()

    @pytest.mark.parametrize("options", [("--fusion", "confidence"), ("--confidence-dir", "maps")])
    def test_without_a_head_one_sentence(self, call, tmp_path, monkeypatch, options):
        monkeypatch.chdir(tmp_path)
        code, messages = call(*options, model="plain")
        assert code == 2
        assert "does not say how sure it is" in messages
        assert not list((tmp_path / "out").glob("*"))

    def test_the_mirrored_exam_as_the_manifest_says_or_the_command(self, call, tmp_path, weights):
        file = tmp_path / "out" / "sub01-t2f.nii.gz"
        made = {}
        for options in ((), ("--flip-average",)):
            assert call("--overwrite", *options)[0] == 0
            made[options] = file.read_bytes()
        assert made[()] != made["--flip-average",]
        folder = shutil.copytree(weights, tmp_path / "w")
        form = json.loads((folder / "manifest.json").read_text())
        form["models"]["unet"]["flip_average"] = True
        (folder / "manifest.json").write_text(json.dumps(form))
        for options, expected in (((), made["--flip-average",]), (("--no-flip-average",), made[()])):
            assert call("--overwrite", "--weights", folder, *options)[0] == 0
            # (Their difference would be shown byte by byte.)
            assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(expected).digest()

    def test_an_output_without_its_map_is_made_again(self, call, tmp_path):
        assert call()[0] == 0
        code, messages = call("--confidence-dir", tmp_path / "maps")
        assert (code, "1 made" in messages) == (0, True)
        assert "1 kept" in call("--confidence-dir", tmp_path / "maps")[1]

    def test_what_the_fallback_makes_has_none(self, call, tmp_path, monkeypatch):
        (tmp_path / "maps").mkdir()
        stale = tmp_path / "maps" / "sub01-t2f-confidence.nii.gz"
        stale.write_bytes(b"of another day")

        def broken(*_):
            raise MemoryError("no room")

        monkeypatch.setattr("app.batch.case_processor.predict", broken)
        code, messages = call("--confidence-dir", tmp_path / "maps")
        assert code == 0
        assert "has no map of confidence" in messages
        assert not stale.exists()

    def test_several_devices_carry_the_options(self, call, tmp_path):
        options = "--fusion", "confidence", "--flip-average"
        assert call(*options, "--confidence-dir", tmp_path / "one")[0] == 0
        alone = (tmp_path / "out" / "sub01-t2f.nii.gz").read_bytes()
        code, _ = call(*options, "--confidence-dir", tmp_path / "two", "--overwrite", "--device", "cpu,cpu")
        assert code == 0
        assert (tmp_path / "out" / "sub01-t2f.nii.gz").read_bytes() == alone
        assert (tmp_path / "two" / "sub01-t2f-confidence.nii.gz").exists()


def test_a_head_is_loaded_with_its_lambda(weights):
    network = load_generator(read_manifest(weights).entry("bounded"))
    assert network.confidence.scale == 0.1
