"""How a network is run: every `auto` settled, with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.core.config import RuntimeOptions
from app.core.errors import DeviceError, UsageError
from app.inference.device import Machine, Runtime, choose_devices, choose_runtime, without_int8

BOTH = {"torch": {}, "onnx": {}}
GPU = Machine(gpus=("H200", "H200"), gpu_bf16=True, cpu_bf16=True)
OLD_GPU = Machine(gpus=("T4",))
CPU = Machine(cpu_bf16=True)
MEASURED = {"torch": {}, "onnx": {}, "int8": {}}
AVX2 = Machine(cpu_int8=True)


def _chosen(roles, machine, **options) -> Runtime:
    return choose_runtime(roles, machine, RuntimeOptions(**options))


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
        runtime = _chosen(BOTH, machine, **options)
        assert (runtime.device, runtime.precision, runtime.batch_size) == (device, precision, batch)

    @pytest.mark.parametrize(
        "machine,precision",
        [
            (AVX2, "int8"),
            (replace(AVX2, cpu_bf16=True), "int8"),
            (replace(AVX2, cpu_bf16=True, cpu_matrices=True), "bf16"),
            (CPU, "bf16"),
            (Machine(), "fp32"),
            (replace(GPU, cpu_int8=True), "bf16"),
        ],
    )
    def test_eight_bits_where_they_are_the_fastest(self, machine, precision):
        assert _chosen(MEASURED, machine).precision == precision
        assert _chosen(BOTH, machine).precision != "int8"
        assert _chosen(MEASURED, machine, backend="onnx").precision == "fp32"

    @pytest.mark.parametrize(
        "roles,machine,options,reason",
        [
            (BOTH, AVX2, {}, "weights calibrate"),
            (MEASURED, CPU, {}, "needs AVX2"),
            (MEASURED, replace(GPU, cpu_int8=True), {}, "for a processor"),
            (MEASURED, AVX2, {"backend": "onnx"}, "fp32, not int8"),
        ],
    )
    def test_eight_bits_that_cannot_be(self, roles, machine, options, reason):
        with pytest.raises(UsageError, match=reason):
            _chosen(roles, machine, precision="int8", **options)

    def test_eight_bits_as_asked(self):
        assert _chosen(MEASURED, replace(AVX2, cpu_matrices=True), precision="int8").precision == "int8"
        assert without_int8("int8") == "auto"
        assert without_int8("bf16") == "bf16"

    def test_it_says_why_there_is_no_gpu(self):
        assert "no CUDA device is visible" in str(_chosen(BOTH, CPU))

    def test_torch_is_preferred_and_onnx_taken_when_alone(self):
        assert _chosen(BOTH, CPU).backend == "torch"
        assert _chosen({"onnx": {}}, CPU).backend == "onnx"

    @pytest.mark.parametrize("device", ["cuda", "cuda:0"])
    def test_a_gpu_that_is_not_there(self, device):
        with pytest.raises(DeviceError, match="none is visible"):
            _chosen(BOTH, CPU, device=device)

    def test_a_gpu_that_torch_has_no_code_for(self):
        old = Machine(gpus=("P100", "H200"), unfit=frozenset({0}))
        with pytest.raises(DeviceError, match="no code for P100"):
            _chosen(BOTH, old, device="cuda")
        assert choose_devices("all", old) == ["cuda:1"]
        alone = Machine(gpus=("P100",), unfit=frozenset({0}))
        assert "no code for P100" in str(_chosen(BOTH, alone))
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
            _chosen(BOTH, GPU, device="cuda:2")

    @pytest.mark.parametrize(
        "options", [{"device": "tpu"}, {"precision": "fp16"}, {"backend": "onnx", "precision": "bf16"}]
    )
    def test_what_does_not_exist(self, options):
        with pytest.raises(UsageError):
            _chosen(BOTH, CPU, **options)

    def test_a_backend_without_weights(self):
        with pytest.raises(UsageError, match="no onnx weights"):
            _chosen({"torch": {}}, CPU, backend="onnx")
