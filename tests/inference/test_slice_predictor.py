"""The runner that keeps volumes on a GPU, here on the processor: it must give what the plain one gives."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from app.core.constants import MODALITIES, VIEWS
from app.core.errors import CaseError
from app.inference.backends import OnnxBackend, TorchBackend
from app.inference.device import Machine, Runtime, choose_runtime
from app.inference.loading import runner_of
from app.inference.slice_predictor import ResidentRunner
from app.inference.slice_runner import SliceRunner
from app.inference.synthesizer import Synthesizer
from app.inference.view_fusion import FusionOptions, TtaPass
from app.networks.architectures import HfGanConfig
from app.networks.hf_gan import HfGan
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import Normalization, measure, normalize
from app.preprocessing.slices import Canvas, place_window
from app.registry.checkpoints import load_generator
from app.registry.manifest import read_manifest
from tests.conftest import join

SIZES = {"axial": (32, 48), "sagittal": (48, 32), "coronal": (32, 32)}


def _backend(precision: str = "fp32", batch: int = 16) -> TorchBackend:
    torch.manual_seed(0)
    network = HfGan(HfGanConfig(width=16))
    return TorchBackend(network, Runtime("torch", "cpu", precision, batch, "test"))  # type: ignore[arg-type]


def _scene(phantom, present=("t1c", "t1n"), sizes=SIZES, background=-1.0):
    """Arrays, how they become scores, and windows."""
    arrays = {m: phantom.volumes[m].astype(np.float32) for m in present}
    scheme = Normalization("volume", background=background)
    windows = [place_window(vote_foreground(arrays), v, Canvas(sizes)) for v in VIEWS]
    return arrays, {m: measure(a, m, scheme) for m, a in arrays.items()}, windows


def _made(runner, arrays, measured, windows, target):
    """The mean of the views."""
    return runner.fuse(arrays, measured, [TtaPass(tuple(windows))], FusionOptions(), target, -1.0).scores


def _both(phantom, backend, present, target, sizes=SIZES, batch=16):
    """What the two runners make of one phantom."""
    arrays, measured, windows = _scene(phantom, present, sizes)
    scores = {m: normalize(a, measured[m], -1.0) for m, a in arrays.items()}
    slices = SliceRunner(backend, batch).predict(scores, windows, target, -1.0)
    plain = join(slices, windows, next(iter(arrays.values())).shape)
    return plain, _made(ResidentRunner(backend, batch), arrays, measured, windows, target)


@pytest.mark.parametrize("present,target", [(("t1c", "t1n", "t2w"), "t2f"), (("t2w", "t1n"), "t1c"), (("t2f",), "t1n")])
def test_float32_is_what_the_plain_runner_makes(phantom, present, target):
    plain, resident = _both(phantom, _backend(), present, target)
    assert plain.std() > 0
    np.testing.assert_array_equal(resident, plain)


def test_bf16_is_too(phantom):
    plain, resident = _both(phantom, _backend("bf16"), ("t1c", "t1n", "t2w"), "t2f")
    assert np.abs(resident - plain).max() <= 1e-2 * plain.std()


def test_windows_that_reach_over_the_edge_and_views_of_one_size(phantom):
    plain, resident = _both(phantom, _backend(), ("t1c", "t1n"), "t2w", dict.fromkeys(VIEWS, (96, 96)))
    np.testing.assert_array_equal(resident, plain)


def test_the_order_of_the_inputs_does_not_matter(phantom):
    backend = _backend()
    one = _both(phantom, backend, ("t1c", "t1n", "t2w"), "t2f")[1]
    np.testing.assert_array_equal(one, _both(phantom, backend, ("t2w", "t1c", "t1n"), "t2f")[1])


def test_one_runner_takes_subjects_of_other_shapes(phantom, weights_dir):
    entry = read_manifest(weights_dir).entry("tiny")
    backend = TorchBackend(load_generator(entry), choose_runtime(entry.files, Machine(), precision="fp32"))
    runner = ResidentRunner(backend, 16)
    scheme = entry.spec.normalization
    for crop in (0, 3, 0):
        arrays = {m: phantom.volumes[m][crop:].astype(np.float32) for m in MODALITIES[:3]}
        windows = [place_window(vote_foreground(arrays), v, entry.spec.canvas) for v in VIEWS]
        made = _made(runner, arrays, {m: measure(a, m, scheme) for m, a in arrays.items()}, windows, "t2w")
        assert made.shape == arrays["t1c"].shape
        assert np.isfinite(made).all()


def test_batch_shrinks_when_memory_runs_out(phantom, monkeypatch):
    backend = _backend()
    run = backend.run

    def small(batch, *rest):
        if len(batch) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(batch, *rest)

    expected, _ = _both(phantom, backend, ("t1c", "t1n"), "t2w")
    monkeypatch.setattr(backend, "run", small)
    runner = ResidentRunner(backend, 16)
    made = _made(runner, *_scene(phantom), "t2w")
    assert runner.batches.size == 4
    np.testing.assert_allclose(made, expected, atol=1e-3)


def test_batches_filled_up_give_the_same(phantom, monkeypatch):
    backend, sizes = _backend(), []
    run = backend.run
    monkeypatch.setattr(backend, "run", lambda batch, *rest: sizes.append(len(batch)) or run(batch, *rest))
    scene = _scene(phantom)
    plain, filled = ResidentRunner(backend, 20), ResidentRunner(backend, 20)
    filled._filled = 16
    expected = _made(plain, *scene, "t2w")
    assert any(n % 16 for n in sizes)
    sizes.clear()
    np.testing.assert_allclose(_made(filled, *scene, "t2w"), expected, atol=1e-3)
    assert not any(n % 16 for n in sizes)


def test_a_scheme_without_a_background_scores_zeros_as_any_voxel(phantom):
    arrays, measured, _ = _scene(phantom, background=None)
    expected = {m: normalize(a, measured[m], None) for m, a in arrays.items()}
    scores = ResidentRunner(_backend(), 8)._scores(arrays, measured, 0.0, fill=False)
    for modality, array in expected.items():
        np.testing.assert_array_equal(scores[MODALITIES.index(modality)].numpy(), array)


def test_memory_that_cannot_be_locked_is_done_without(phantom, monkeypatch):
    backend = _backend()
    expected = _both(phantom, backend, ("t1c", "t1n"), "t2w")[1]
    empty = torch.empty

    def unlocked(*shape, **options):
        if "pin_memory" in options:
            raise RuntimeError("cudaHostAlloc: not permitted")
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", unlocked)
    np.testing.assert_array_equal(_both(phantom, backend, ("t1c", "t1n"), "t2w")[1], expected)


def test_a_subject_that_does_not_fit_says_what_to_do(phantom, monkeypatch):
    backend = _backend()
    runner = ResidentRunner(backend, 16)

    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(runner, "_upload", exhausted)
    with pytest.raises(CaseError, match="--device cpu"):
        _made(runner, *_scene(phantom), "t2w")


def test_a_gpu_gets_it_and_a_processor_does_not():
    backend = _backend()
    assert isinstance(runner_of(backend, Runtime("torch", "cuda:0", "bf16", 64, "")), ResidentRunner)
    assert isinstance(runner_of(backend, Runtime("torch", "cpu", "fp32", 8, "")), SliceRunner)
    assert isinstance(runner_of(backend, Runtime("onnx", "cuda:0", "fp32", 64, "")), ResidentRunner)
    assert isinstance(runner_of(backend, Runtime("onnx", "cpu", "fp32", 64, "")), SliceRunner)


def test_onnxruntime_on_volumes_that_stay_gives_the_same(phantom, onnx_weights_dir):
    entry = read_manifest(onnx_weights_dir).entry("tiny")
    backend = OnnxBackend(entry, choose_runtime(entry.files, Machine(), backend="onnx"))
    plain, resident = _both(phantom, backend, ("t1c", "t1n"), "t2w")
    np.testing.assert_allclose(resident, plain, atol=1e-5)


def test_the_whole_way_gives_the_same_image(subject, weights_dir):
    synthesizer = Synthesizer("tiny", weights=weights_dir, device="cpu", precision="fp32")
    plain = synthesizer(subject["t1c"].parent)
    runner = synthesizer.model.runner
    assert isinstance(runner, SliceRunner)
    assert isinstance(runner.backend, TorchBackend)
    resident = ResidentRunner(runner.backend, 8)
    synthesizer.model = replace(synthesizer.model, runner=resident)
    again = synthesizer(subject["t1c"].parent)
    np.testing.assert_array_equal(np.asanyarray(again.dataobj), np.asanyarray(plain.dataobj))
    assert again.header.binaryblock == plain.header.binaryblock
