from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from app.core.constants import MODALITIES
from app.core.errors import WeightsError
from app.networks.architectures import EnhancerConfig, RefinerConfig
from app.networks.enhancer import Enhancer
from app.networks.hf_gan import HfGan
from app.networks.refiner import Refiner
from app.networks.unet import Segmenter2d
from app.networks.unet3d import Segmenter3d
from app.preprocessing.normalization import BRASYN25_INTENSITIES, Normalization
from app.preprocessing.slices import Canvas
from app.registry.checkpoints import (
    load_generator,
    load_intensity,
    load_quality,
    load_refiner,
    load_regression,
    load_segmenter2d,
    load_segmenter3d,
)
from app.registry.lineage import TrainingRecord
from app.registry.manifest import add_file, change_spec, read_manifest, sha256_of
from tests.networks.small_models import (
    VOLUME,
    add_expert,
    save_generator,
    save_refiner,
    save_segmenter2d,
    save_segmenter3d,
)
from tests.preprocessing.quality import quality_file, quality_model

CANVAS = Canvas({"axial": (48, 48)})


@pytest.fixture
def copy(weights_dir, tmp_path):
    return shutil.copytree(weights_dir, tmp_path / "w")


def test_generator_is_ready_for_inference(weights_dir):
    network = load_generator(read_manifest(weights_dir).entry("tiny"))
    assert not any(m.training for m in network.modules())
    assert not any(p.requires_grad for p in network.parameters())
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    torch.manual_seed(1)
    images, present = torch.randn(1, 4, 32, 32), torch.tensor([[1.0, 1, 0, 1]])
    one, two = (network(images, present, torch.tensor([2]), torch.tensor([0])) for _ in range(2))
    # Dropout left on would show here.
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_missing_file_is_named(copy):
    (copy / "tiny.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"tiny\.safetensors"):
        load_generator(read_manifest(copy).entry("tiny"))


def test_architecture_that_does_not_fit(copy):
    form = json.loads((copy / "manifest.json").read_text())
    form["models"]["tiny"]["architecture"]["width"] = 32
    (copy / "manifest.json").write_text(json.dumps(form))
    with pytest.raises(WeightsError, match="does not fit"):
        load_generator(read_manifest(copy).entry("tiny"))


def test_volume_scheme_brings_its_intensity_predictor(weights_dir):
    manifest = read_manifest(weights_dir)
    assert load_intensity(manifest.entry("tiny")) == load_intensity(manifest.entry("regression"))


@pytest.mark.parametrize(
    "network,save,load",
    [
        (lambda: Segmenter2d((8, 16)), lambda f, n: save_segmenter2d(f, "m", n.widths, n.state_dict(), VOLUME, CANVAS),
         load_segmenter2d),
        (lambda: Segmenter3d((4, 8)),
         lambda f, n: save_segmenter3d(f, "m", n.widths, n.state_dict(), VOLUME, (16,) * 3), load_segmenter3d),
        (lambda: Refiner(RefinerConfig((8, 8, 8))),
         lambda f, n: save_refiner(f, "m", n.config, n.state_dict(), VOLUME, (16,) * 3, 0.25), load_refiner),
        (lambda: Enhancer(EnhancerConfig((4, 8))),
         lambda f, n: save_refiner(f, "m", n.config, n.state_dict(), VOLUME, (32,) * 3, 0.25), load_refiner),
    ],
)  # fmt: skip
def test_what_is_saved_is_loaded(tmp_path, network, save, load):
    torch.manual_seed(2)
    saved = network()
    loaded = load(save(tmp_path, saved))
    assert type(loaded) is type(saved)
    assert not loaded.training
    for key, value in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@pytest.mark.parametrize("load", [load_segmenter2d, load_segmenter3d, load_refiner, load_regression])
def test_another_kind_is_refused(weights_dir, load):
    with pytest.raises(WeightsError, match=r"'tiny' in .* is a generator, not a "):
        load(read_manifest(weights_dir).entry("tiny"))


def test_what_is_no_safetensors_file_is_named(tmp_path):
    network = Segmenter3d((4, 8))
    entry = save_segmenter3d(tmp_path, "m", network.widths, network.state_dict(), VOLUME, (16, 16, 16))
    (tmp_path / "m.safetensors").write_bytes(b"no weights")
    form = json.loads((tmp_path / "manifest.json").read_text())
    form["models"]["m"]["files"]["torch"]["sha256"] = sha256_of(tmp_path / "m.safetensors")
    (tmp_path / "manifest.json").write_text(json.dumps(form))
    with pytest.raises(WeightsError, match="is not a safetensors file"):
        load_segmenter3d(read_manifest(tmp_path).entry(entry.name))


def test_constants_of_a_data_set_need_no_predictor(copy):
    tiny = read_manifest(copy).entry("tiny")
    scheme = Normalization("dataset", background=-1.0, intensities=BRASYN25_INTENSITIES)
    state = HfGan(tiny.spec.architecture).state_dict()
    entry = save_generator(copy, "m", tiny.spec.architecture, state, scheme, CANVAS, ("axial",))
    assert load_intensity(entry) is None


def test_a_predictor_that_is_needed_and_not_there_is_named(tmp_path):
    network = Segmenter2d((8, 16))
    entry = save_segmenter2d(tmp_path, "m", network.widths, network.state_dict(), VOLUME, CANVAS)
    with pytest.raises(WeightsError, match="has no intensity file"):
        load_intensity(entry)


def test_a_training_is_kept_beside_the_weights(tmp_path):
    network = Segmenter3d((4, 8))
    record = TrainingRecord(model="m", task="segmentation3d", subjects=("s1",), minutes=2.5)
    entry = save_segmenter3d(tmp_path, "m", network.widths, network.state_dict(), VOLUME, (16, 16, 16), training=record)
    assert read_manifest(tmp_path).lineage.trainings == {entry.sha256: record}


class TestMetadata:
    @pytest.fixture
    def two(self, copy):
        """`tiny`, and `expert` for T2-FLAIR."""
        add_expert(copy)
        return copy

    @staticmethod
    def _exchange(folder, role="torch"):
        """Exchanges the files of both in the manifest."""
        form = json.loads((folder / "manifest.json").read_text())
        one, two = (form["models"][name]["files"] for name in ("tiny", "expert"))
        one[role], two[role] = two[role], one[role]
        (folder / "manifest.json").write_text(json.dumps(form))

    def test_a_file_names_its_model_and_its_targets(self, two):
        for name, targets in (("tiny", "t1c t1n t2f t2w"), ("expert", "t2f")):
            with safe_open(two / f"{name}.safetensors", "pt") as stream:
                assert stream.metadata() == {"tetrad_model": name, "tetrad_targets": targets}
            load_generator(read_manifest(two).entry(name))

    def test_files_that_were_exchanged_are_refused(self, two):
        self._exchange(two)
        for name in ("tiny", "expert"):
            with pytest.raises(WeightsError, match="says of itself tetrad_model"):
                load_generator(read_manifest(two).entry(name))

    def test_a_file_of_other_targets_is_refused(self, two):
        change_spec(read_manifest(two).entry("expert"), targets=("t1c",))
        with pytest.raises(WeightsError, match=r"says of itself tetrad_targets 't2f', but .* 't1c'"):
            load_generator(read_manifest(two).entry("expert"))

    def test_a_file_that_does_not_say_is_taken(self, copy):
        state = load_file(copy / "tiny.safetensors")
        entry = add_file(read_manifest(copy).entry("tiny"), "torch", save(state))
        load_generator(entry)


@pytest.mark.parametrize("content", [b"[]", b"3", b"{}", b"{", b"[" * 100_000])
@pytest.mark.parametrize(("role", "load"), [("intensity", load_intensity), ("coefficients", load_regression)])
def test_coefficients_that_are_none_are_named(copy, content, role, load):
    entry = add_file(read_manifest(copy).entry("regression"), role, content)
    with pytest.raises(WeightsError, match="is damaged"):
        load(entry)


def test_what_is_expected_is_no_part_of_what_a_model_is(copy):
    entry = read_manifest(copy).entry("tiny")
    assert load_quality(entry) is None
    told = add_file(entry, "quality", quality_file())
    assert load_quality(told) == quality_model()
    assert told.identity == entry.identity
    assert told.files["quality"].path.startswith("quality-")


@pytest.mark.parametrize("content", [b"[]", b"{}", b"{", quality_file().replace(b"0.7", b"NaN")])
def test_expectations_that_are_none_are_named(copy, content):
    with pytest.raises(WeightsError, match="is damaged"):
        load_quality(add_file(read_manifest(copy).entry("tiny"), "quality", content))


def _without(form, key):
    return {**form, "coefficients": {k: v for k, v in form["coefficients"].items() if k != key}}


def _infinite(values):
    return [_infinite(v) for v in values] if isinstance(values, list) else float("inf")


def _with(form, key, value):
    return {**form, "coefficients": {**form["coefficients"], key: value}}


@pytest.mark.parametrize(("role", "load"), [("intensity", load_intensity), ("coefficients", load_regression)])
@pytest.mark.parametrize(
    "damage",
    [
        lambda form: _without(form, "t1c>t2f"),
        lambda form: _with(form, "t1c>t2f", []),
        lambda form: _with(form, "t1c>t2f", [[1.0], [1.0]]),
        lambda form: _with(form, "t1c>t2f", "abc"),
        lambda form: _with(form, "t1c>t2f", _infinite(form["coefficients"]["t1c>t2f"])),
    ],
)
def test_coefficients_that_lack_or_are_no_numbers_are_named(copy, role, load, damage):
    entry = read_manifest(copy).entry("regression")
    form = damage(json.loads(entry.path_of(role).read_text()))
    with pytest.raises(WeightsError, match="is damaged"):
        load(add_file(entry, role, json.dumps(form).encode()))


@pytest.mark.parametrize(
    "stated",
    [
        {"logarithmic": 1},
        {"logarithmic": "yes"},
        {"logarithmic": True, "ratio_range": dict.fromkeys(MODALITIES, (-2, 0))},
    ],
)
def test_brightness_of_an_unclear_kind_is_no_guess(copy, stated):
    entry = read_manifest(copy).entry("regression")
    form = json.loads(entry.path_of("intensity").read_text()) | stated
    with pytest.raises(WeightsError, match="is damaged"):
        load_intensity(add_file(entry, "intensity", json.dumps(form).encode()))


def test_a_shape_that_no_network_has(copy):
    form = json.loads((copy / "manifest.json").read_text())
    form["models"]["tiny"]["architecture"]["width"] = 17
    (copy / "manifest.json").write_text(json.dumps(form))
    with pytest.raises(WeightsError, match=r"cannot be built|does not fit"):
        load_generator(read_manifest(copy).entry("tiny"))
