from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from app.core.constants import MODALITIES, VIEWS
from app.core.errors import CaseError, DeviceError, UsageError
from app.inference.backends import OnnxBackend, TorchBackend, open_backend, tells_of_memory
from app.inference.device import Machine, choose_devices, choose_runtime
from app.inference.slice_runner import SliceRunner
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.slices import Canvas, place_window
from app.registry.checkpoints import load_generator
from app.registry.manifest import read_manifest
from tests.conftest import join

BOTH = {"torch": {}, "onnx": {}}
GPU = Machine(gpus=("H200", "H200"), gpu_bf16=True, cpu_bf16=True)
OLD_GPU = Machine(gpus=("T4",))
CPU = Machine(cpu_bf16=True)


class TestRuntime:
    @pytest.mark.parametrize(
        "machine,options,device,precision,batch",
        [
            (GPU, {}, "cuda:0", "bf16", 64),
            (OLD_GPU, {}, "cuda:0", "fp16", 64),
            (CPU, {}, "cpu", "bf16", 8),
            (Machine(), {}, "cpu", "fp32", 8),
            (GPU, {"device": "cpu"}, "cpu", "bf16", 8),
            (replace(GPU, unfit=frozenset({0})), {}, "cuda:1", "bf16", 64),
            (replace(GPU, unfit=frozenset({0, 1})), {}, "cpu", "bf16", 8),
            (GPU, {"device": "cuda:1", "precision": "fp32", "batch_size": 7}, "cuda:1", "fp32", 7),
            (GPU, {"backend": "onnx"}, "cuda:0", "fp32", 64),
        ],
    )
    def test_choices(self, machine, options, device, precision, batch):
        runtime = choose_runtime(BOTH, machine, **options)
        assert (runtime.device, runtime.precision, runtime.batch_size) == (device, precision, batch)

    def test_it_says_why_there_is_no_gpu(self):
        assert "no CUDA device is visible" in str(choose_runtime(BOTH, CPU))

    def test_torch_is_preferred_and_onnx_taken_when_alone(self):
        assert choose_runtime(BOTH, CPU).backend == "torch"
        assert choose_runtime({"onnx": {}}, CPU).backend == "onnx"

    @pytest.mark.parametrize("device", ["cuda", "cuda:0"])
    def test_a_gpu_that_is_not_there(self, device):
        with pytest.raises(DeviceError, match="none is visible"):
            choose_runtime(BOTH, CPU, device=device)

    def test_a_gpu_that_torch_has_no_code_for(self):
        old = Machine(gpus=("P100", "H200"), unfit=frozenset({0}))
        with pytest.raises(DeviceError, match="no code for P100"):
            choose_runtime(BOTH, old, device="cuda")
        assert choose_devices("all", old) == ["cuda:1"]
        alone = Machine(gpus=("P100",), unfit=frozenset({0}))
        assert "no code for P100" in str(choose_runtime(BOTH, alone))
        with pytest.raises(DeviceError, match="no code for P100"):
            choose_devices("all", alone)

    @pytest.mark.parametrize(
        ("capability", "built_for", "runs"),
        [
            ((6, 0), ["sm_75", "sm_80", "sm_90"], False),
            ((7, 5), ["sm_75", "sm_80", "sm_90"], True),
            ((8, 9), ["sm_75", "sm_80", "sm_90"], True),
            ((8, 0), ["sm_86"], False),
            ((12, 0), ["sm_80", "sm_90"], False),
            ((12, 0), ["sm_90", "compute_90"], True),
            ((12, 0), ["sm_100", "sm_120"], True),
            ((9, 0), ["sm_90a"], True),
            ((10, 3), ["sm_100a"], False),
            ((6, 0), ["gfx90a"], True),
            ((6, 0), [], True),
        ],
    )
    def test_the_probe_finds_what_torch_was_built_for(self, monkeypatch, capability, built_for, runs):
        for name, value in {"is_available": True, "device_count": 1, "get_device_capability": capability,
                            "get_device_name": "a GPU", "get_arch_list": built_for}.items():  # fmt: skip
            monkeypatch.setattr(f"torch.cuda.{name}", lambda *_, value=value: value)
        machine = Machine.probe()
        assert machine.gpus == ("a GPU",)
        assert machine.usable == ([0] if runs else [])
        assert machine.gpu_bf16 == (runs and capability[0] >= 8)

    def test_a_gpu_too_many(self):
        with pytest.raises(DeviceError, match="only 2"):
            choose_runtime(BOTH, GPU, device="cuda:2")

    @pytest.mark.parametrize(
        "options", [{"device": "tpu"}, {"precision": "fp16"}, {"backend": "onnx", "precision": "bf16"}]
    )
    def test_what_does_not_exist(self, options):
        with pytest.raises(UsageError):
            choose_runtime(BOTH, CPU, **options)

    def test_a_backend_without_weights(self):
        with pytest.raises(UsageError, match="no onnx weights"):
            choose_runtime({"torch": {}}, CPU, backend="onnx")


class Recorder:
    """A stand-in network: the mean of the present sequences plus the view's index; remembers its batches."""

    def __init__(self, limit: int = 10**9) -> None:
        self.limit = limit
        self.batches: list[tuple[int, ...]] = []

    def predict(self, images, members, target, views, intensity):
        if len(images) > self.limit:
            raise MemoryError("out of memory")
        self.batches.append(tuple(views))
        return images[:, list(members)].mean(axis=1) + views[:, None, None].astype(np.float32)


def _scene(sizes: dict[str, tuple[int, int]] | None = None):
    random = np.random.default_rng(0)
    shape = (40, 44, 36)
    brain = np.zeros(shape, dtype=bool)
    brain[5:30, 8:40, 4:30] = True
    scores = {m: np.where(brain, random.normal(size=shape), -1.0).astype(np.float32) for m in MODALITIES[:3]}
    canvas = Canvas(sizes or dict.fromkeys(VIEWS, (48, 48)))  # type: ignore[arg-type]
    return scores, brain, [place_window(brain, v, canvas) for v in VIEWS]


class TestRunner:
    def test_views_of_one_size_share_batches(self):
        scores, _, windows = _scene()
        backend = Recorder()
        SliceRunner(backend, 16).predict(scores, windows, "t2w", -1.0)
        total = sum(len(w.slices) for w in windows)
        assert [len(b) for b in backend.batches] == [16] * (total // 16) + ([total % 16] if total % 16 else [])
        assert any(len(set(b)) > 1 for b in backend.batches)

    def test_views_of_other_sizes_do_not(self):
        scores, _, windows = _scene({"axial": (48, 48), "sagittal": (48, 64), "coronal": (64, 48)})
        backend = Recorder()
        SliceRunner(backend, 16).predict(scores, windows, "t2w", -1.0)
        assert all(len(set(b)) == 1 for b in backend.batches)

    def test_empty_slices_are_not_run(self):
        scores, brain, windows = _scene()
        backend = Recorder()
        SliceRunner(backend, 4).predict(scores, windows, "t2w", -1.0)
        run = sum(len(b) for b in backend.batches)
        assert run == 25 + 32 + 26 < sum(brain.shape)

    @pytest.mark.parametrize("batch", [1, 5, 64])
    def test_fused_views_are_the_mean_in_the_right_place(self, batch):
        scores, brain, windows = _scene()
        slices = SliceRunner(Recorder(), batch).predict(scores, windows, "t2w", -1.0)
        fused = join(slices, windows, brain.shape)
        expected = np.mean([scores[m] for m in scores], axis=0) + np.mean([0, 1, 2])
        np.testing.assert_allclose(fused[brain], expected[brain], atol=1e-5)

    def test_weights_of_views(self):
        scores, brain, windows = _scene()
        slices = SliceRunner(Recorder(), 8).predict(scores, windows, "t2w", -1.0)
        fused = join(slices, windows, brain.shape, {"axial": 0.25, "sagittal": 0.75, "coronal": 0.0})
        expected = np.mean([scores[m] for m in scores], axis=0) + 0.75
        np.testing.assert_allclose(fused[brain], expected[brain], atol=1e-5)

    def test_batch_is_halved_when_memory_runs_out_and_stays_so(self, caplog):
        scores, _, windows = _scene()
        small, large = Recorder(limit=5), Recorder()
        runner = SliceRunner(small, 16)
        made = runner.predict(scores, windows, "t2w", -1.0)
        expected = SliceRunner(large, 16).predict(scores, windows, "t2w", -1.0)
        assert runner.batches.size == 4
        assert "batches are now of 4 slices" in caplog.text
        for view in VIEWS:
            np.testing.assert_array_equal(made[view], expected[view])

    def test_not_even_one_slice(self):
        scores, _, windows = _scene()
        with pytest.raises(CaseError, match="--device cpu"):
            SliceRunner(Recorder(limit=0), 4).predict(scores, windows, "t2w", -1.0)


class TestBackends:
    @pytest.fixture
    def entry(self, onnx_weights_dir):
        return read_manifest(onnx_weights_dir).entry("tiny")

    @pytest.mark.parametrize("size", [(48, 48), (64, 80)])
    @pytest.mark.parametrize("members,target", [((0, 1, 2), 3), ((1, 3), 0), ((2,), 1)])
    def test_torch_and_onnx_agree(self, entry, members, target, size):
        images = np.random.default_rng(0).normal(size=(3, 4, *size)).astype(np.float32)
        made = [
            open_backend(entry, choose_runtime(entry.files, Machine(), backend=name)).predict(
                images, members, target, np.array([0, 1, 2]), None
            )
            for name in ("torch", "onnx")
        ]
        assert made[0].shape == (3, *size)
        assert np.abs(made[0] - made[1]).max() < 1e-3 * np.ptp(made[0])

    def test_onnxruntime_reads_and_writes_tensors_where_they_lie(self, entry):
        backend = OnnxBackend(entry, choose_runtime(entry.files, Machine(), backend="onnx"))
        images = np.random.default_rng(0).normal(size=(6, 4, 48, 64)).astype(np.float32)
        views = np.array([0, 1, 2, 0, 1, 2])
        # Every other slice, with the channels last: what is bound must be laid out as onnxruntime reads it.
        batch = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)[::2]
        made = backend.run(batch, (0, 1, 2), 3, torch.from_numpy(views)[::2], None)
        again = backend.run(batch + 1, (0, 1, 2), 3, torch.from_numpy(views)[::2], None)
        assert made.dtype == torch.float32
        expected = backend.predict(images[::2].copy(), (0, 1, 2), 3, views[::2].copy(), None)
        np.testing.assert_array_equal(made.numpy(), expected)
        assert (again != made).any()

    def test_bf16_is_close_to_fp32(self, entry):
        images = np.random.default_rng(0).normal(size=(2, 4, 48, 48)).astype(np.float32)
        full, half = (
            TorchBackend(
                load_generator(entry), choose_runtime(entry.files, Machine(), device="cpu", precision=precision)
            ).predict(images, (0, 1, 2), 3, np.array([0, 1]), None)
            for precision in ("fp32", "bf16")
        )
        assert half.dtype == np.float32
        assert np.abs(full - half).mean() < 0.03 * full.std()

    @pytest.mark.parametrize("message", ["DefaultCPUAllocator: can't allocate memory: you tried", "CUDA out"])
    def test_torch_tells_of_exhausted_memory(self, entry, message, monkeypatch):
        backend = TorchBackend(load_generator(entry), choose_runtime(entry.files, Machine(), precision="fp32"))

        def exhausted(*_args, **_kwargs):
            raise torch.OutOfMemoryError(message) if "CUDA" in message else RuntimeError(message)

        monkeypatch.setattr(backend, "network", exhausted)
        with pytest.raises(MemoryError):
            backend.predict(np.zeros((1, 4, 32, 32), np.float32), (0, 1, 2), 3, np.array([0]), None)

    def test_onnxruntime_tells_of_exhausted_memory(self, entry, monkeypatch):
        backend = OnnxBackend(entry, choose_runtime(entry.files, Machine(), backend="onnx"))

        class Exhausted:
            def io_binding(self):
                # Its own errors derive from Exception and nothing nearer.
                raise type("RuntimeException", (Exception,), {})("Failed to allocate memory for requested buffer")

        monkeypatch.setattr(backend, "_session", Exhausted())
        with pytest.raises(MemoryError):
            backend.predict(np.zeros((1, 4, 32, 32), np.float32), (0, 1, 2), 3, np.array([0]), None)

    @pytest.mark.parametrize(
        "text,memory",
        [("CUDA error: out of memory", True), ("CUBLAS_STATUS_ALLOC_FAILED when calling", True),
         ("CUDNN_STATUS_ALLOC_FAILED", True), ("an illegal memory access was encountered", False)],
    )  # fmt: skip
    def test_what_tells_of_memory(self, text, memory):
        assert tells_of_memory(RuntimeError(text)) == memory

    def test_telemetry_is_off_before_onnxruntime_is_imported(self, entry, monkeypatch):
        import os

        monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
        OnnxBackend(entry, choose_runtime(entry.files, Machine(), backend="onnx"))
        assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


@pytest.mark.data
def test_both_backends_agree_on_a_real_subjects_slices(data_dir, onnx_weights_dir):
    from app.data.nifti_reader import load_volume
    from app.inference.synthesizer import Synthesizer
    from app.preprocessing.normalization import measure, normalize

    entry = read_manifest(onnx_weights_dir).entry("tiny")
    folder = data_dir / "val" / "Brats18_2013_3_1"
    arrays = {m: load_volume(folder / f"{folder.name}-{m}.nii.gz").data for m in ("t1c", "t1n", "t2w")}
    scheme = entry.spec.normalization
    scores = {m: normalize(a, measure(a, m, scheme), scheme.background) for m, a in arrays.items()}
    window = place_window(vote_foreground(arrays), "axial", entry.spec.canvas)
    few = type(window)(window.view, window.start, window.size, window.slices[40:100:12])
    made = []
    for backend in ("torch", "onnx"):
        model = Synthesizer("tiny", weights=onnx_weights_dir, device="cpu", backend=backend, precision="fp32").model
        assert model.runner is not None
        made.append(model.runner.predict(scores, [few], "t2f", -1.0)["axial"])
    assert np.abs(made[0] - made[1]).max() < 1e-3 * np.ptp(made[0])
