"""Networks that are ready to run: one method, the same for torch and onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from app.core.constants import MODALITIES
from app.core.errors import DeviceError, TetradError, WeightsError
from app.inference.device import Runtime
from app.registry.checkpoints import load_generator, load_ranges
from app.registry.manifest import Entry

if TYPE_CHECKING:
    from pathlib import Path

    from app.networks.ds3net.slice_generator import Ds3NetSliceGenerator
    from app.networks.hf_gan import HfGan
    from app.networks.int8 import Ranges
    from app.networks.unet import UNetGenerator

    Generator = HfGan | UNetGenerator | Ds3NetSliceGenerator


#: Type of a network's weights and slices, by precision.
TORCH_TYPES: Final = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    # What is not in eight bits.
    "int8": torch.float32,
}


class Prediction(NamedTuple):
    """Slices that a network predicts.

    Attributes:
        image: normalized slices of the target, float32 B x S x H x W, for each input the S slices that a pass makes.
        error: expected absolute error of `image`, same shape; None where it was not wanted.
    """

    image: Tensor
    error: Tensor | None = None


class Backend(Protocol):
    """A network that is ready to run.

    Attributes:
        device: where it runs.
        dtype: of the slices that it takes.
    """

    device: torch.device
    dtype: torch.dtype

    def run(
        self,
        batch: Tensor,
        members: tuple[int, ...],
        target: int,
        views: Tensor,
        intensity: float | None,
        *,
        with_error: bool = False,
    ) -> Prediction:
        """Predict the target's slices.

        Args:
            batch: normalized slices, B x 4 x H x W in challenge order, or so for each slice that the network sees.
            members: indices of the present sequences.
            target: index of the sequence to make.
            views: view indices, int64 (B,).
            intensity: the target's median in the brain, for networks with an intensity code.
            with_error: whether the expected error is wanted; for networks with a confidence head.

        Raises:
            MemoryError: the batch is too large for the device.
        """
        ...


def open_backend(entry: Entry, runtime: Runtime) -> Backend:
    """Load a model's weights for a runtime.

    Raises:
        WeightsError: the weights are missing or damaged.
        DeviceError: onnxruntime cannot use the GPU that was chosen.
    """
    if runtime.backend == "onnx":
        return OnnxBackend(entry, runtime)
    network = load_generator(entry)
    if runtime.precision == "int8":
        use_int8(network, load_ranges(entry), entry.folder / entry.files["int8"].path)
    return TorchBackend(network, runtime)


def use_int8(network: Generator, ranges: Ranges, source: Path) -> None:
    """Have a plain generator compute in eight bits.

    Args:
        network: on the CPU, in float32.
        source: where the ranges are from.

    Raises:
        WeightsError: it is no plain generator, or the ranges are not its own.
    """
    from app.networks.int8 import Int8UNet
    from app.networks.unet import UNetGenerator

    if not isinstance(network, UNetGenerator):
        raise WeightsError(f"{source} is for plain U-Nets alone; use --precision fp32.")
    try:
        network.network = Int8UNet(network.network, ranges)  # type: ignore[assignment]
    except (KeyError, ValueError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:100]
        raise WeightsError(f"{source} does not fit the network ({reason}); measure it anew by `python -m app weights "
                           "calibrate`.") from None  # fmt: skip


class TorchBackend:
    """Run a network by torch: eager, channels last, in inference mode."""

    def __init__(self, network: Generator, runtime: Runtime) -> None:
        self.dtype = TORCH_TYPES[runtime.precision]
        self.device = torch.device(runtime.device)
        if self.device.type == "cuda":
            # The same input gives the same bytes, and float32 is float32.
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.allow_tf32 = False
        network = network.eval().to(self.device, self.dtype)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(
        self,
        batch: Tensor,
        members: tuple[int, ...],
        target: int,
        views: Tensor,
        intensity: float | None,
        *,
        with_error: bool = False,
    ) -> Prediction:
        """Predict the target's slices; see `Backend.run`."""
        with memory_errors(self.device), torch.inference_mode():
            count = len(batch)
            inputs = (
                batch.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last),
                _presence(members, count, self.device),
                torch.full((count,), target, device=self.device),
                views.to(self.device),
                None if intensity is None else torch.full((count,), intensity, device=self.device),
            )
            if not with_error:
                return Prediction(self.network(*inputs, members=members).float())
            features = self.network.features(*inputs, members=members)
            return Prediction(self.network.image(features).float(), self.network.error(features))


class OnnxBackend:
    """Run a network by onnxruntime, in float32.

    The graph runs all four encoders and masks the missing ones. Tensors are bound where they lie, so that nothing on a
    GPU leaves it.
    """

    dtype = torch.float32

    def __init__(self, entry: Entry, runtime: Runtime) -> None:
        # Its wheels from 1.29 on write a device id for telemetry unless this is set before the import.
        os.environ["ORT_DISABLE_TELEMETRY"] = "1"
        import onnxruntime as ort

        self.device = torch.device(runtime.device)
        providers: list[Any] = ["CPUExecutionProvider"]
        if self.device.type == "cuda":
            ort.preload_dlls()
            # No search among convolutions: it would be done again for every batch size, with another result perhaps.
            cuda = {"device_id": self.device.index or 0, "use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"}
            providers.insert(0, ("CUDAExecutionProvider", cuda))
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self._session = ort.InferenceSession(entry.path_of("onnx"), options, providers=providers)
        if self.device.type == "cuda" and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise DeviceError(
                f"onnxruntime cannot use {runtime.device}; install onnxruntime-gpu or use --backend torch."
            )
        self._inputs = {i.name for i in self._session.get_inputs()}
        self._slices = int(self._session.get_outputs()[0].shape[1])

    def run(
        self,
        batch: Tensor,
        members: tuple[int, ...],
        target: int,
        views: Tensor,
        intensity: float | None,
        *,
        with_error: bool = False,
    ) -> Prediction:
        """Predict the target's slices; see `Backend.run`."""
        with memory_errors(self.device):
            count = len(batch)
            inputs = {
                "images": batch.to(self.device, self.dtype).contiguous(),
                "present": _presence(members, count, self.device),
                "target": torch.full((count,), target, device=self.device),
                "view": views.to(self.device).contiguous(),
                "intensity": torch.full((count,), intensity or 0.0, device=self.device),
            }
            outputs = {
                name: torch.empty(count, self._slices, *batch.shape[2:], device=self.device)
                for name in ("scores", "error")[: 1 + with_error]
            }
            self._run_bound({n: t for n, t in inputs.items() if n in self._inputs}, outputs)
            return Prediction(*outputs.values())

    def _run_bound(self, inputs: dict[str, Tensor], outputs: dict[str, Tensor]) -> None:
        """Run the graph on contiguous tensors of the device, and fill `outputs` in place."""
        if self.device.type == "cuda":
            # onnxruntime has a stream of its own, which does not wait for torch's; it may read when a tensor is bound.
            torch.cuda.current_stream(self.device).synchronize()
        binding = self._session.io_binding()
        for name, tensor in inputs.items():
            binding.bind_input(name, *self._place_of(tensor))
        for name, tensor in outputs.items():
            binding.bind_output(name, *self._place_of(tensor))
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    def _place_of(self, tensor: Tensor) -> tuple[str, int, type[np.generic], tuple[int, ...], int]:
        """Describe where a contiguous tensor lies, as onnxruntime's binding takes it."""
        kind = np.int64 if tensor.dtype == torch.int64 else np.float32
        return self.device.type, self.device.index or 0, kind, tuple(tensor.shape), tensor.data_ptr()


def _presence(members: tuple[int, ...], count: int, device: torch.device) -> Tensor:
    """Mark the present sequences: count x 4, 1 where a sequence is there, else 0."""
    presence = torch.zeros(count, len(MODALITIES), device=device)
    for member in members:
        presence[:, member] = 1
    return presence


@contextmanager
def memory_errors(device: torch.device) -> Iterator[None]:
    """Raise MemoryError in place of the errors of torch, CUDA and onnxruntime on exhausted memory."""
    try:
        yield
    except TetradError:
        raise
    # onnxruntime's errors share no class but the most general.
    except Exception as error:
        if not is_memory_error(error):
            raise
        if device.type == "cuda":
            torch.cuda.empty_cache()
        raise MemoryError(str(error).splitlines()[0]) from None


def is_memory_error(error: Exception) -> bool:
    """Tell whether an error of torch, CUDA's libraries or onnxruntime says that memory ran out."""
    text = f"{type(error).__name__}: {error}".lower()
    return any(words in text for words in ("outofmemory", "allocate memory", "out of memory", "alloc_failed"))
