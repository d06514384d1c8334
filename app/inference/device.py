"""Device, backend and precision of a run, settled once, with the reason in words."""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

from app.core.config import Precision, RuntimeOptions
from app.core.errors import DeviceError, UsageError

#: Slices per call: on a processor few stay near its caches (`python -m benchmarks speed`); a GPU wants many.
CPU_BATCH = 8
GPU_BATCH = 64


@dataclass(frozen=True)
class Machine:
    """What the hardware offers.

    Attributes:
        gpus: names of the CUDA devices.
        unfit: indices of those that this build of torch has no code for.
        gpu_bf16: whether the others compute in bfloat16 natively.
        cpu_bf16: whether the processor does (AVX512_BF16 or AMX).
        cpu_matrices: whether it multiplies matrices in bfloat16 (AMX).
        cpu_int8: whether torch multiplies on it in eight bits, faster than in float32.
    """

    gpus: tuple[str, ...] = ()
    unfit: frozenset[int] = frozenset()
    gpu_bf16: bool = False
    cpu_bf16: bool = False
    cpu_matrices: bool = False
    cpu_int8: bool = False

    @property
    def usable(self) -> list[int]:
        """Indices of the GPUs that networks can run on."""
        return [i for i in range(len(self.gpus)) if i not in self.unfit]

    @classmethod
    def probe(cls) -> Machine:
        """Ask torch for the hardware."""
        import torch

        from app.networks.int8 import has_int8

        flags = _cpu_flags()
        numbers = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
        built_for = torch.cuda.get_arch_list()
        known = {i: torch.cuda.get_device_capability(i) for i in numbers}
        fit = [i for i in numbers if _has_kernels(known[i], built_for)]
        return cls(
            gpus=tuple(torch.cuda.get_device_name(i) for i in numbers),
            unfit=frozenset(numbers) - frozenset(fit),
            # Ampere (compute capability 8) and later; `is_bf16_supported` would also count emulation.
            gpu_bf16=bool(fit) and all(known[i][0] >= 8 for i in fit),
            cpu_bf16=bool({"avx512_bf16", "amx_bf16"} & flags),
            cpu_matrices="amx_bf16" in flags,
            cpu_int8=has_int8(),
        )


@dataclass(frozen=True)
class Runtime:
    """How a network is run, and the reason for it in words."""

    backend: Literal["torch", "onnx"]
    device: str
    precision: Literal["bf16", "fp16", "fp32", "int8"]
    batch_size: int
    reason: str

    def __str__(self) -> str:
        return f"{self.backend} on {self.device} in {self.precision}, batch {self.batch_size} ({self.reason})"


def choose_runtime(roles: Container[str], machine: Machine, options: RuntimeOptions) -> Runtime:
    """Settle every `auto`; torch is preferred, and a GPU over the processor.

    Args:
        roles: the files that the model has (`torch`, `onnx`, `int8`).
        options: of one device.

    Raises:
        UsageError: a value or combination that does not exist.
        DeviceError: a GPU was asked for and is not there.
    """
    chosen, why_device = choose_device(options.device, machine)
    on_gpu = chosen.startswith("cuda")
    if options.backend == "auto":
        name: Literal["torch", "onnx"] = "torch" if "torch" in roles else "onnx"
        why_backend = f"the model has {' and '.join(r for r in ('torch', 'onnx') if r in roles)} weights"
    else:
        name, why_backend = options.backend, f"{options.backend} as asked"
    if name not in roles:
        raise UsageError(f"this model has no {name} weights; use another --backend, or `python -m app export`.")
    return Runtime(
        backend=name,
        device=chosen,
        precision=_choose_precision(options.precision, name, on_gpu, machine, "int8" in roles),
        batch_size=options.batch_size or (GPU_BATCH if on_gpu else CPU_BATCH),
        reason=f"{why_device}; {why_backend}",
    )


def choose_device(device: str, machine: Machine) -> tuple[str, str]:
    """Choose one device, and say why.

    Raises:
        UsageError: no such name.
        DeviceError: a GPU was asked for and is not there, or this build of torch has no code for it.
    """
    if device == "cpu":
        return "cpu", "cpu as asked"
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if device != "auto" and match is None:
        raise UsageError(f"device {device!r} is not known; use auto, cpu, cuda or cuda:N.")
    if match is None:
        if usable := machine.usable:
            return f"cuda:{usable[0]}", f"found {machine.gpus[usable[0]]}"
        if machine.gpus:
            return "cpu", f"this build of torch has no code for {machine.gpus[0]}"
        return "cpu", "no CUDA device is visible"
    index = int(match[1] or 0)
    if index >= len(machine.gpus):
        count = f"only {len(machine.gpus)}" if machine.gpus else "none"
        raise DeviceError(f"device {device} was asked for but {count} is visible; use --device cpu or pass --gpus all.")
    if index in machine.unfit:
        name = machine.gpus[index]
        raise DeviceError(f"this build of torch has no code for {name} ({device}); use another GPU or --device cpu.")
    return f"cuda:{index}", f"{machine.gpus[index]} as asked"


def choose_devices(device: str, machine: Machine) -> list[str]:
    """Choose one device or several.

    Args:
        device: names separated by commas (one may come twice), or `all` GPUs that can be used.

    Raises:
        UsageError, DeviceError: as `choose_device`; or `all` without any GPU.
    """
    if device == "all":
        if not machine.gpus:
            raise DeviceError("device all was asked for but no GPU is visible; use --device cpu or pass --gpus all.")
        if not machine.usable:
            raise DeviceError(f"this build of torch has no code for {', '.join(machine.gpus)}; use --device cpu.")
        return [f"cuda:{i}" for i in machine.usable]
    return [choose_device(name, machine)[0] for name in device.split(",")]


def _choose_precision(
    precision: Precision, backend: str, on_gpu: bool, machine: Machine, has_ranges: bool
) -> Literal["bf16", "fp16", "fp32", "int8"]:
    if backend == "onnx":
        if precision not in {"auto", "fp32"}:
            raise UsageError(f"the onnx backend runs in fp32, not {precision}; use --backend torch.")
        return "fp32"
    if precision == "fp16" and not on_gpu:
        raise UsageError("fp16 needs a GPU; use bf16 or fp32 on a processor.")
    if precision == "int8":
        if on_gpu:
            raise UsageError("int8 is for a processor; use bf16, fp16 or fp32 on a GPU.")
        if not has_ranges:
            raise UsageError("this model is not measured for int8; run `python -m app weights calibrate`, or use fp32.")
        if not machine.cpu_int8:
            raise UsageError("int8 needs AVX2 and a torch with oneDNN; use bf16 or fp32.")
    if precision != "auto":
        return precision
    if on_gpu:
        return "bf16" if machine.gpu_bf16 else "fp16"
    # By speed (docs/RESULTS.md, "Eight bits").
    if has_ranges and machine.cpu_int8 and not machine.cpu_matrices:
        return "int8"
    return "bf16" if machine.cpu_bf16 else "fp32"


def without_int8(precision: Precision) -> Precision:
    """Give the precision of networks that cannot run in int8, beside one that was asked to."""
    return "auto" if precision == "int8" else precision


def _has_kernels(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Tell whether a build of torch runs on a GPU of a compute capability.

    Code for `sm_86` runs on 8.6 and later of generation 8, and `sm_90a` on 9.0 alone. `compute_90` is translated for
    9.0 and all later ones (CUDA programming guide, application compatibility).

    Args:
        built_for: `torch.cuda.get_arch_list()`; one that says nothing is trusted.
    """
    if not built_for:
        return True
    for name in built_for:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", name)
        if match is None:
            return True
        built = int(match[2]), int(match[3])
        carries_on = match[4] != "a" and (match[1] == "compute" or built[0] == capability[0])
        if built == capability or (built < capability and carries_on):
            return True
    return False


def _cpu_flags() -> frozenset[str]:
    """List what the processor can do, in Linux's words; nothing on other systems."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as stream:
            flags = next((line for line in stream if line.startswith("flags")), "")
    except OSError:
        return frozenset()
    return frozenset(flags.split())
