"""Networks ready to run: torch and onnxruntime give the same, and say alike when memory runs out."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from app.core.config import RuntimeOptions
from app.data.nifti_reader import load_volume
from app.inference.backends import OnnxBackend, TorchBackend, is_memory_error, open_backend
from app.inference.device import Machine, Runtime, choose_runtime
from app.inference.pipeline import prepare
from app.inference.slicewise.view_fusion import FusionOptions, TtaPass
from app.inference.synthesizer import Synthesizer
from app.preprocessing.slices import place_window
from app.registry.checkpoints import load_generator
from app.registry.manifest import read_manifest

VIEWS = torch.tensor([0, 1, 2])


@pytest.fixture
def entry(onnx_weights_dir):
    return read_manifest(onnx_weights_dir).entry("tiny")


def _runtime(entry, **options) -> Runtime:
    return choose_runtime(entry.files, Machine(), RuntimeOptions(**options))


def _batch(count: int, *size: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(count, 4, *size)).astype(np.float32))


@pytest.mark.parametrize("size", [(48, 48), (64, 80)])
@pytest.mark.parametrize("members,target", [((0, 1, 2), 3), ((1, 3), 0), ((2,), 1)])
def test_torch_and_onnx_agree(entry, members, target, size):
    torch_image, onnx_image = (
        open_backend(entry, _runtime(entry, backend=name)).run(_batch(3, *size), members, target, VIEWS, None).image
        for name in ("torch", "onnx")
    )
    assert torch_image.shape == (3, 1, *size)
    assert (torch_image - onnx_image).abs().max() < 1e-3 * np.ptp(torch_image.numpy())


def test_onnxruntime_reads_and_writes_tensors_where_they_lie(entry):
    backend = OnnxBackend(entry, _runtime(entry, backend="onnx"))
    images, views = _batch(6, 48, 64), torch.tensor([0, 1, 2, 0, 1, 2])
    # Every other slice, with the channels last: what is bound must be laid out as onnxruntime reads it.
    batch = images.contiguous(memory_format=torch.channels_last)[::2]
    strided = backend.run(batch, (0, 1, 2), 3, views[::2], None).image
    other = backend.run(batch + 1, (0, 1, 2), 3, views[::2], None).image
    assert strided.dtype == torch.float32
    plain = backend.run(images[::2].clone(), (0, 1, 2), 3, views[::2].clone(), None).image
    assert torch.equal(strided, plain)
    assert (other != strided).any()


@pytest.mark.parametrize("members,target", [((0, 1, 3), 2), ((2,), 1)])
def test_onnx_gives_both_too(confident_weights, members, target):
    entry = read_manifest(confident_weights).entry("unet")
    batch = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 4, 48, 32)).astype(np.float32))
    asked = batch, members, target, torch.tensor([0, 1, 2]), None
    one, other = (open_backend(entry, _runtime(entry, backend=b)) for b in ("torch", "onnx"))
    both = other.run(*asked, with_error=True)
    for made, again in zip(one.run(*asked, with_error=True), both, strict=True):
        np.testing.assert_allclose(made, again, rtol=1e-3, atol=1e-3 * np.ptp(made.numpy()))
    alone = other.run(*asked)
    assert torch.equal(alone.image, both.image)
    assert alone.error is None


def test_bf16_is_close_to_fp32(entry):
    full, half = (
        TorchBackend(load_generator(entry), _runtime(entry, device="cpu", precision=precision))
        .run(_batch(2, 48, 48), (0, 1, 2), 3, VIEWS[:2], None)
        .image
        for precision in ("fp32", "bf16")
    )
    assert half.dtype == torch.float32
    assert (full - half).abs().mean() < 0.03 * full.std()


class TestMemory:
    @pytest.mark.parametrize("message", ["DefaultCPUAllocator: can't allocate memory: you tried", "CUDA out"])
    def test_torch_tells_of_exhausted_memory(self, entry, message, monkeypatch):
        backend = TorchBackend(load_generator(entry), _runtime(entry, precision="fp32"))

        def exhausted(*_args, **_kwargs):
            raise torch.OutOfMemoryError(message) if "CUDA" in message else RuntimeError(message)

        monkeypatch.setattr(backend, "network", exhausted)
        with pytest.raises(MemoryError):
            backend.run(torch.zeros(1, 4, 32, 32), (0, 1, 2), 3, VIEWS[:1], None)

    def test_onnxruntime_tells_of_exhausted_memory(self, entry, monkeypatch):
        backend = OnnxBackend(entry, _runtime(entry, backend="onnx"))

        class Exhausted:
            def io_binding(self):
                # Its own errors derive from Exception and nothing nearer.
                raise type("RuntimeException", (Exception,), {})("Failed to allocate memory for requested buffer")

        monkeypatch.setattr(backend, "_session", Exhausted())
        with pytest.raises(MemoryError):
            backend.run(torch.zeros(1, 4, 32, 32), (0, 1, 2), 3, VIEWS[:1], None)

    @pytest.mark.parametrize(
        "text,memory",
        [("CUDA error: out of memory", True), ("CUBLAS_STATUS_ALLOC_FAILED when calling", True),
         ("CUDNN_STATUS_ALLOC_FAILED", True), ("an illegal memory access was encountered", False)],
    )  # fmt: skip
    def test_what_tells_of_memory(self, text, memory):
        assert is_memory_error(RuntimeError(text)) == memory


def test_telemetry_is_off_before_onnxruntime_is_imported(entry, monkeypatch):
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    OnnxBackend(entry, _runtime(entry, backend="onnx"))
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.data
def test_both_backends_agree_on_a_real_subjects_slices(data_dir, onnx_weights_dir):
    folder = data_dir / "val" / "Brats18_2013_3_1"
    volumes = {m: load_volume(folder / f"{folder.name}-{m}.nii.gz") for m in ("t1c", "t1n", "t2w")}
    images = []
    for backend in ("torch", "onnx"):
        model = Synthesizer("tiny", weights=onnx_weights_dir, device="cpu", backend=backend, precision="fp32").model
        prepared = prepare(volumes, model)
        window = place_window(prepared.foreground, "axial", model.spec.canvas)
        few = replace(window, slices=window.slices[40:100:12])
        volume = model.predictor.predict(prepared, "t2f", [TtaPass((few,))], FusionOptions()).volume
        images.append(volume[..., list(few.slices)])
    assert np.abs(images[0] - images[1]).max() < 1e-3 * np.ptp(images[0])
