"""Runs a generator over slices: which device, backend and precision, in what batches.

`choose_runtime` decides once and says why; a backend is one small interface (`Backend`), so that torch and
onnxruntime, CPU and GPU, are the same to everything above.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from app.config import BackendName, Precision
from app.constants import MODALITIES, VIEWS, Modality, View
from app.errors import CaseError, DeviceError, UsageError
from app.types import SliceStack, VolumeArray
from app.views import Window, cut
from app.weights import Entry, load_generator

if TYPE_CHECKING:
    from torch import Tensor

    from app.models.generator import Generator
    from app.models.unet import PlainGenerator

log = logging.getLogger(__name__)

#: Slices per call: on a processor eight are faster than one (compact by half, half by 40 %) and sixteen hardly faster
#: or slower than eight; a GPU wants many.
CPU_BATCH = 8
GPU_BATCH = 64


@dataclass(frozen=True)
class Machine:
    """What the hardware offers.

    Attributes:
        gpus: names of the CUDA devices.
        gpu_bf16: whether they compute in bfloat16 natively.
        cpu_bf16: whether the processor does (AVX512_BF16 or AMX).
    """

    gpus: tuple[str, ...] = ()
    gpu_bf16: bool = False
    cpu_bf16: bool = False

    @classmethod
    def probe(cls) -> Machine:
        """Asks torch."""
        import torch

        gpus: tuple[str, ...] = ()
        if torch.cuda.is_available():
            gpus = tuple(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        # Ampere (compute capability 8) and later; `is_bf16_supported` would also count emulation.
        gpu_bf16 = bool(gpus) and all(torch.cuda.get_device_capability(i)[0] >= 8 for i in range(len(gpus)))
        return cls(gpus, gpu_bf16, cpu_bf16=_cpu_has_bf16())


@dataclass(frozen=True)
class Runtime:
    """How a network is run, and why, in words."""

    backend: Literal["torch", "onnx"]
    device: str
    precision: Literal["bf16", "fp16", "fp32"]
    batch_size: int
    reason: str

    def __str__(self) -> str:
        return f"{self.backend} on {self.device} in {self.precision}, batch {self.batch_size} ({self.reason})"


class Backend(Protocol):
    """A network that is ready to run."""

    def predict(
        self,
        images: NDArray[np.float32],
        members: tuple[int, ...],
        target: int,
        views: NDArray[np.int64],
        intensity: float | None,
    ) -> NDArray[np.float32]:
        """Float32 B x H x W scores.

        Args:
            images: float32 B x 4 x H x W scores in challenge order.
            members: indices of the present sequences.
            target: index of the sequence to make.
            views: (B,) view indices.
            intensity: the target's median in [0, 1], for networks with an intensity code.

        Raises:
            MemoryError: the batch is too large for the device.
        """
        ...


def choose_runtime(
    roles: Mapping[str, Any],
    machine: Machine,
    device: str = "auto",
    backend: BackendName = "auto",
    precision: Precision = "auto",
    batch_size: int | None = None,
) -> Runtime:
    """Settles every `auto`; prefers torch, and a GPU over the processor.

    Args:
        roles: the files that the model has (`torch`, `onnx`).
        device: `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: a value or combination that does not exist.
        DeviceError: a GPU was asked for and is not there.
    """
    chosen, why_device = choose_device(device, machine)
    on_gpu = chosen.startswith("cuda")
    if backend == "auto":
        name: Literal["torch", "onnx"] = "torch" if "torch" in roles else "onnx"
        why_backend = f"the model has {' and '.join(r for r in ('torch', 'onnx') if r in roles)} weights"
    else:
        name, why_backend = backend, f"{backend} as asked"
    if name not in roles:
        raise UsageError(f"this model has no {name} weights; use another --backend, or `python -m app export`.")
    return Runtime(
        backend=name,
        device=chosen,
        precision=_choose_precision(precision, name, on_gpu, machine),
        batch_size=batch_size or (GPU_BATCH if on_gpu else CPU_BATCH),
        reason=f"{why_device}; {why_backend}",
    )


def open_backend(entry: Entry, runtime: Runtime) -> Backend:
    """Loads a model's weights for a runtime.

    Raises:
        WeightsError: the weights are missing or damaged.
        DeviceError: onnxruntime cannot use the GPU that was chosen.
    """
    if runtime.backend == "torch":
        return TorchBackend(load_generator(entry), runtime)
    return OnnxBackend(entry, runtime)


class TorchBackend:
    """Eager torch, channels last, inference mode."""

    def __init__(self, network: Generator | PlainGenerator, runtime: Runtime) -> None:
        import torch

        self._torch = torch
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[runtime.precision]
        self.device = torch.device(runtime.device)
        if self.device.type == "cuda":
            # The same input gives the same bytes.
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.benchmark = False
        network = network.eval().to(self.device, self.dtype)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def predict(
        self,
        images: NDArray[np.float32],
        members: tuple[int, ...],
        target: int,
        views: NDArray[np.int64],
        intensity: float | None,
    ) -> NDArray[np.float32]:
        """See `Backend.predict`."""
        torch = self._torch
        with self.telling_of_memory():
            batch, codes = torch.from_numpy(images).to(self.device, self.dtype), torch.from_numpy(views)
            out: NDArray[np.float32] = self.run(batch, members, target, codes.to(self.device), intensity).cpu().numpy()
            return out

    def run(
        self, batch: Tensor, members: tuple[int, ...], target: int, views: Tensor, intensity: float | None
    ) -> Tensor:
        """Float32 B x H x W scores; as `predict`, with everything on the device."""
        torch, count = self._torch, len(batch)
        with torch.inference_mode():
            present = torch.zeros(count, len(MODALITIES), device=self.device)
            for member in members:
                present[:, member] = 1
            scores: Tensor = self.network(
                batch.contiguous(memory_format=torch.channels_last),
                present,
                torch.full((count,), target, device=self.device),
                views,
                None if intensity is None else torch.full((count,), intensity, device=self.device),
                members=members,
            )
            return scores[:, 0].float()

    @contextlib.contextmanager
    def telling_of_memory(self) -> Iterator[None]:
        """Torch's ways to say that memory ran out, as MemoryError."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, self._torch.OutOfMemoryError) or "allocate memory" in str(error):
                if self.device.type == "cuda":
                    self._torch.cuda.empty_cache()
                raise MemoryError(str(error).splitlines()[0]) from None
            raise


class OnnxBackend:
    """onnxruntime in float32; the graph runs all four encoders and masks the missing ones."""

    def __init__(self, entry: Entry, runtime: Runtime) -> None:
        # Its wheels from 1.29 on write a device id for telemetry unless told not to before the import.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime as ort

        providers: list[Any] = ["CPUExecutionProvider"]
        if runtime.device.startswith("cuda"):
            ort.preload_dlls()
            index = int(runtime.device.partition(":")[2] or 0)
            providers.insert(0, ("CUDAExecutionProvider", {"device_id": index, "use_tf32": 0}))
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._session = ort.InferenceSession(entry.path_of("onnx"), options, providers=providers)
        if runtime.device.startswith("cuda") and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise DeviceError(
                f"onnxruntime cannot use {runtime.device}; install onnxruntime-gpu or use --backend torch."
            )
        self._inputs = {i.name for i in self._session.get_inputs()}

    def predict(
        self,
        images: NDArray[np.float32],
        members: tuple[int, ...],
        target: int,
        views: NDArray[np.int64],
        intensity: float | None,
    ) -> NDArray[np.float32]:
        """See `Backend.predict`."""
        count = len(images)
        feed = {
            "images": images,
            "present": _presence(members, count),
            "target": np.full(count, target, dtype=np.int64),
            "view": views,
            "intensity": np.full(count, intensity or 0.0, dtype=np.float32),
        }
        try:
            (scores,) = self._session.run(None, {k: v for k, v in feed.items() if k in self._inputs})
        except RuntimeError as error:
            if "allocate memory" in str(error):
                raise MemoryError(str(error).splitlines()[0]) from None
            raise
        out: NDArray[np.float32] = scores[:, 0]
        return out


class Batches:
    """How many slices a call takes: fewer once memory ran out, and it stays so."""

    def __init__(self, size: int) -> None:
        self.size = size

    def each(self, count: int, step: Callable[[int, int], None]) -> None:
        """Calls `step(first, end)` until all of `count` are done.

        Raises:
            CaseError: not even one slice fits into memory.
        """
        done = 0
        while done < count:
            end = min(done + self.size, count)
            try:
                step(done, end)
            except MemoryError as error:
                self._halve(error)
                continue
            done = end

    def _halve(self, error: MemoryError) -> None:
        if self.size == 1:
            raise CaseError(f"not even one slice fits into the device's memory ({error}); use --device cpu.") from None
        self.size //= 2
        log.warning("Memory ran out: batches are now of %d slices.", self.size)


class SliceRunner:
    """Cuts volumes into slices, runs a backend over them and fuses what it makes."""

    def __init__(self, backend: Backend, batch_size: int) -> None:
        self.backend, self.batches = backend, Batches(batch_size)

    def predict(
        self,
        scores: Mapping[Modality, VolumeArray],
        windows: Sequence[Window],
        target: Modality,
        background: float,
        intensity: float | None = None,
    ) -> dict[View, SliceStack]:
        """Scores of every listed slice of every window; views of one window size share batches.

        Args:
            scores: one to three normalised sequences, axes (left, posterior, superior).
            windows: one per view.
            background: fills missing sequences and what lies beyond the volume.

        Returns:
            Per view, float32 (len(window.slices), rows, columns).

        Raises:
            CaseError: not even one slice fits into memory.
        """
        out = {w.view: np.empty((len(w.slices), *w.size), dtype=np.float32) for w in windows}
        members = members_of(scores)

        def run(group: list[Window]) -> None:
            stacks = {w.view: {m: cut(v, w, background) for m, v in scores.items()} for w in group}
            jobs = [(w.view, i) for w in group for i in range(len(w.slices))]

            def step(first: int, end: int) -> None:
                chunk = jobs[first:end]
                images = np.full((len(chunk), len(MODALITIES), *group[0].size), background, dtype=np.float32)
                for row, (view, index) in enumerate(chunk):
                    for member in members:
                        images[row, member] = stacks[view][MODALITIES[member]][index]
                views = np.array([VIEWS.index(view) for view, _ in chunk], dtype=np.int64)
                made = self.backend.predict(images, members, MODALITIES.index(target), views, intensity)
                for (view, index), image in zip(chunk, made, strict=True):
                    out[view][index] = image

            self.batches.each(len(jobs), step)

        for group in by_size(windows):
            run(group)
        return out


def members_of(present: Iterable[Modality]) -> tuple[int, ...]:
    """Indices of the sequences that are present, in challenge order."""
    there = set(present)
    return tuple(i for i, m in enumerate(MODALITIES) if m in there)


def by_size(windows: Sequence[Window]) -> Iterator[list[Window]]:
    """Groups of views that can share a batch."""
    for size in dict.fromkeys(w.size for w in windows):
        yield [w for w in windows if w.size == size]


def _presence(members: tuple[int, ...], count: int) -> NDArray[np.float32]:
    row = np.zeros(len(MODALITIES), dtype=np.float32)
    row[list(members)] = 1
    return np.repeat(row[None], count, axis=0)


def choose_device(device: str, machine: Machine) -> tuple[str, str]:
    """The device and why it was chosen.

    Raises:
        UsageError: no such name.
        DeviceError: a GPU was asked for and is not there.
    """
    if device == "cpu":
        return "cpu", "cpu as asked"
    match = re.fullmatch(r"cuda(?::(\d+))?", device)
    if device != "auto" and match is None:
        raise UsageError(f"device {device!r} is not known; use auto, cpu, cuda or cuda:N.")
    if match is None:
        if machine.gpus:
            return "cuda:0", f"found {machine.gpus[0]}"
        return "cpu", "no CUDA device is visible"
    index = int(match[1] or 0)
    if index >= len(machine.gpus):
        found = f"only {len(machine.gpus)}" if machine.gpus else "none"
        raise DeviceError(f"device {device} was asked for but {found} is visible; use --device cpu or pass --gpus all.")
    return f"cuda:{index}", f"{machine.gpus[index]} as asked"


def choose_devices(device: str, machine: Machine) -> list[str]:
    """One device or several: names separated by commas (one may come twice), or `all` GPUs.

    Raises:
        UsageError, DeviceError: as `choose_device`; or `all` without any GPU.
    """
    if device == "all":
        if not machine.gpus:
            raise DeviceError("device all was asked for but no GPU is visible; use --device cpu or pass --gpus all.")
        return [f"cuda:{i}" for i in range(len(machine.gpus))]
    return [choose_device(name, machine)[0] for name in device.split(",")]


def _choose_precision(
    precision: Precision, backend: str, on_gpu: bool, machine: Machine
) -> Literal["bf16", "fp16", "fp32"]:
    if backend == "onnx":
        if precision not in {"auto", "fp32"}:
            raise UsageError(f"the onnx backend runs in fp32, not {precision}; use --backend torch.")
        return "fp32"
    if precision == "fp16" and not on_gpu:
        raise UsageError("fp16 needs a GPU; use bf16 or fp32 on a processor.")
    if precision != "auto":
        return precision
    if on_gpu:
        return "bf16" if machine.gpu_bf16 else "fp16"
    return "bf16" if machine.cpu_bf16 else "fp32"


def _cpu_has_bf16() -> bool:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as stream:
            flags = next((line for line in stream if line.startswith("flags")), "")
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(flags.split()))
