"""Networks that are ready to run: one small interface, so that torch and onnxruntime are the same to all above."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.core.constants import MODALITIES
from app.core.errors import DeviceError, TetradError
from app.inference.device import Runtime
from app.inference.graphs import CudaRecorder, Graphs
from app.registry.checkpoints import load_generator
from app.registry.manifest import Entry

if TYPE_CHECKING:
    from app.networks.hf_gan import HfGan
    from app.networks.unet import UNetGenerator


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
            intensity: the target's median in the brain, for networks with an intensity code.

        Raises:
            MemoryError: the batch is too large for the device.
        """
        ...

    def predict_with_error(
        self,
        images: NDArray[np.float32],
        members: tuple[int, ...],
        target: int,
        views: NDArray[np.int64],
        intensity: float | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As `predict`, and the expected absolute error in scores, same shape; for networks with such a head."""
        ...


class DeviceBackend(ABC):
    """A network on a device: takes and gives numpy arrays (`Backend`), or tensors that lie there already.

    Attributes:
        device: where.
        dtype: of the slices that it takes.
    """

    device: torch.device
    dtype: torch.dtype

    def predict(
        self,
        images: NDArray[np.float32],
        members: tuple[int, ...],
        target: int,
        views: NDArray[np.int64],
        intensity: float | None,
    ) -> NDArray[np.float32]:
        """See `Backend.predict`."""
        with self.telling_of_memory():
            out = self.run(self._placed(images), members, target, self._placed(views), intensity)
            scores: NDArray[np.float32] = out.cpu().numpy()
            return scores

    def predict_with_error(
        self,
        images: NDArray[np.float32],
        members: tuple[int, ...],
        target: int,
        views: NDArray[np.int64],
        intensity: float | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Backend.predict_with_error`."""
        with self.telling_of_memory():
            out = self.run_with_error(self._placed(images), members, target, self._placed(views), intensity)
            return out[0].cpu().numpy(), out[1].cpu().numpy()

    def run(
        self, batch: Tensor, members: tuple[int, ...], target: int, views: Tensor, intensity: float | None
    ) -> Tensor:
        """Float32 B x H x W scores; as `predict`, with everything on the device."""
        return self._made(batch, members, target, views, intensity, with_error=False)[0]

    def run_with_error(
        self, batch: Tensor, members: tuple[int, ...], target: int, views: Tensor, intensity: float | None
    ) -> tuple[Tensor, Tensor]:
        """As `run`, and the expected absolute error, float32 B x H x W; for networks with such a head."""
        scores, error = self._made(batch, members, target, views, intensity, with_error=True)
        return scores, error

    @abstractmethod
    def _made(
        self,
        batch: Tensor,
        members: tuple[int, ...],
        target: int,
        views: Tensor,
        intensity: float | None,
        *,
        with_error: bool,
    ) -> Sequence[Tensor]:
        """Scores, and with `with_error` the expected error; float32 B x H x W each."""

    @contextmanager
    def telling_of_memory(self) -> Iterator[None]:
        """The library's ways to say that memory ran out, as MemoryError."""
        try:
            yield
        except TetradError:
            raise
        # onnxruntime's errors share no class but the most general.
        except Exception as error:
            if not tells_of_memory(error):
                raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            raise MemoryError(str(error).splitlines()[0]) from None

    def _placed(self, array: NDArray[Any]) -> Tensor:
        """Slices in the network's type, numbers in their own."""
        tensor = torch.from_numpy(array)
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else tensor.dtype)

    def _presence(self, members: tuple[int, ...], count: int) -> Tensor:
        """B x 4: 1 where a sequence is there, else 0."""
        present = torch.zeros(count, len(MODALITIES), device=self.device)
        for member in members:
            present[:, member] = 1
        return present


def open_backend(entry: Entry, runtime: Runtime) -> DeviceBackend:
    """Loads a model's weights for a runtime.

    Raises:
        WeightsError: the weights are missing or damaged.
        DeviceError: onnxruntime cannot use the GPU that was chosen.
    """
    if runtime.backend == "torch":
        return TorchBackend(load_generator(entry), runtime)
    return OnnxBackend(entry, runtime)


class TorchBackend(DeviceBackend):
    """Torch, channels last, inference mode; eager, or replaying CUDA graphs where the runtime asks for them."""

    def __init__(self, network: HfGan | UNetGenerator, runtime: Runtime) -> None:
        self.dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[runtime.precision]
        self.device = torch.device(runtime.device)
        if self.device.type == "cuda":
            # The same input gives the same bytes, and float32 is float32.
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.allow_tf32 = False
        network = network.eval().to(self.device, self.dtype)
        self.network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._graphs = Graphs(CudaRecorder(self.device)) if runtime.cuda_graphs else None

    def _made(
        self,
        batch: Tensor,
        members: tuple[int, ...],
        target: int,
        views: Tensor,
        intensity: float | None,
        *,
        with_error: bool,
    ) -> tuple[Tensor, ...]:
        count = len(batch)
        asked = (
            batch.contiguous(memory_format=torch.channels_last),
            self._presence(members, count),
            torch.full((count,), target, device=self.device),
            views,
            None if intensity is None else torch.full((count,), intensity, device=self.device),
        )
        call = partial(self._scores_and_error if with_error else self._scores, members)
        with torch.inference_mode():
            return call(*asked) if self._graphs is None else self._graphs((with_error, members), call, asked)

    def _scores(self, members: tuple[int, ...], *asked: Tensor | None) -> tuple[Tensor, ...]:
        scores: Tensor = self.network(*asked, members=members)
        return (scores[:, 0].float(),)

    def _scores_and_error(self, members: tuple[int, ...], *asked: Tensor | None) -> tuple[Tensor, ...]:
        features = self.network.features(*asked, members=members)
        return self.network.image(features)[:, 0].float(), self.network.error(features)[:, 0]


class OnnxBackend(DeviceBackend):
    """onnxruntime in float32; the graph runs all four encoders and masks the missing ones.

    What lies on the device is bound where it lies and never leaves it.
    """

    dtype = torch.float32

    def __init__(self, entry: Entry, runtime: Runtime) -> None:
        # Its wheels from 1.29 on write a device id for telemetry unless told not to before the import.
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

    def _made(
        self,
        batch: Tensor,
        members: tuple[int, ...],
        target: int,
        views: Tensor,
        intensity: float | None,
        *,
        with_error: bool,
    ) -> list[Tensor]:
        count = len(batch)
        given = {
            "images": batch.contiguous(),
            "present": self._presence(members, count),
            "target": torch.full((count,), target, device=self.device),
            "view": views.contiguous(),
            "intensity": torch.full((count,), intensity or 0.0, device=self.device),
        }
        made = {
            name: torch.empty(count, 1, *batch.shape[2:], device=self.device)
            for name in ("scores", "error")[: 1 + with_error]
        }
        if self.device.type == "cuda":
            # onnxruntime has a stream of its own, which does not wait for torch's; it may read when a tensor is bound.
            torch.cuda.current_stream(self.device).synchronize()
        binding = self._session.io_binding()
        for name, tensor in given.items():
            if name in self._inputs:
                binding.bind_input(name, *self._place_of(tensor))
        for name, tensor in made.items():
            binding.bind_output(name, *self._place_of(tensor))
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return [image[:, 0] for image in made.values()]

    def _place_of(self, tensor: Tensor) -> tuple[str, int, type[np.generic], tuple[int, ...], int]:
        """Where a contiguous tensor lies, in the words of onnxruntime."""
        kind = np.int64 if tensor.dtype == torch.int64 else np.float32
        return self.device.type, self.device.index or 0, kind, tuple(tensor.shape), tensor.data_ptr()


def tells_of_memory(error: Exception) -> bool:
    """Whether an error of torch, CUDA's libraries or onnxruntime says that memory ran out."""
    text = f"{type(error).__name__}: {error}".lower()
    return any(words in text for words in ("outofmemory", "allocate memory", "out of memory", "alloc_failed"))
