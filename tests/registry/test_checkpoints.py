from __future__ import annotations

import json
import shutil

import pytest
import torch

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
    load_refiner,
    load_regression,
    load_segmenter2d,
    load_segmenter3d,
)
from app.registry.lineage import TrainingRecord
from app.registry.manifest import read_manifest, sha256_of
from tests.networks.small_models import VOLUME, save_generator, save_refiner, save_segmenter2d, save_segmenter3d

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
