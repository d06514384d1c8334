"""Networks that are ready to run: one small interface, so that torch and onnxruntime are the same to all above."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.constants import MODALITIES
from app.errors import DeviceError
from app.graphs import CudaRecorder, Graphs
from app.networks import load_generator
from app.runtime import Runtime
from app.weights import Entry

if TYPE_CHECKING:
    from app.models.generator import Generator
    from app.models.unet import PlainGenerator


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


class DeviceBackend(Backend, Protocol):
    """A network that also takes and gives tensors that lie on its device.

    Attributes:
        device: where.
        dtype: of the slices that it takes.
    """

    device: torch.device
    dtype: torch.dtype

    def run(
        self, batch: Tensor, members: tuple[int, ...], target: int, views: Tensor, intensity: float | None
    ) -> Tensor:
        """Float32 B x H x W scores; as `predict`, with everything on the device."""
        ...

    def run_with_error(
        self, batch: Tensor, members: tuple[int, ...], target: int, views: Tensor, intensity: float | None
    ) -> tuple[Tensor, Tensor]:
        """As `run`, and the expected absolute error, float32 B x H x W; for networks with such a head."""
        ...

    def telling_of_memory(self) -> AbstractContextManager[None]:
        """The library's ways to say that memory ran out, as MemoryError."""
        ...


def open_backend(entry: Entry, runtime: Runtime) -> DeviceBackend:
    """Loads a model's weights for a runtime.

    Raises:
        WeightsError: the weights are missing or damaged.
        DeviceError: onnxruntime cannot use the GPU that was chosen.
    """
    if runtime.backend == "torch":
        return TorchBackend(load_generator(entry), runtime)
    return OnnxBackend(entry, runtime)


class TorchBackend:
    """Torch, channels last, inference mode; eager, or replaying CUDA graphs where the runtime asks for them."""

    def __init__(self, network: Generator | PlainGenerator, runtime: Runtime) -> None:
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
            batch, codes = self._placed(images, views)
            out: NDArray[np.float32] = self.run(batch, members, target, codes, intensity).cpu().numpy()
            return out

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
            batch, codes = self._placed(images, views)
            scores, error = self.run_with_error(batch, members, target, codes, intensity)
            return scores.cpu().numpy(), error.cpu().numpy()

    def run(
        self, batch: Tensor, members: tuple[int, ...], target: int, views: Tensor, intensity: float | None
    ) -> Tensor:
        """See `DeviceBackend.run`."""
        return self._run(self._scores, batch, members, target, views, intensity)[0]

    def run_with_error(
        self, batch: Tensor, members: tuple[int, ...], target: int, views: Tensor, intensity: float | None
    ) -> tuple[Tensor, Tensor]:
        """See `DeviceBackend.run_with_error`."""
        scores, error = self._run(self._scores_and_error, batch, members, target, views, intensity)
        return scores, error

    def _run(
        self,
        step: Callable[..., tuple[Tensor, ...]],
        batch: Tensor,
        members: tuple[int, ...],
        target: int,
        views: Tensor,
        intensity: float | None,
    ) -> tuple[Tensor, ...]:
        asked = self._asked(batch, members, target, views, intensity)
        with torch.inference_mode():
            call = partial(step, members)
            return call(*asked) if self._graphs is None else self._graphs((step.__name__, members), call, asked)

    def _scores(self, members: tuple[int, ...], *asked: Tensor | None) -> tuple[Tensor, ...]:
        scores: Tensor = self.network(*asked, members=members)
        return (scores[:, 0].float(),)

    def _scores_and_error(self, members: tuple[int, ...], *asked: Tensor | None) -> tuple[Tensor, ...]:
        features = self.network.features(*asked, members=members)
        return self.network.image(features)[:, 0].float(), self.network.error(features)[:, 0]

    def _placed(self, images: NDArray[np.float32], views: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(images).to(self.device, self.dtype), torch.from_numpy(views).to(self.device)

    def _asked(
        self, batch: Tensor, members: tuple[int, ...], target: int, views: Tensor, intensity: float | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """What a network takes, but for `members`."""
        count = len(batch)
        present = torch.zeros(count, len(MODALITIES), device=self.device)
        for member in members:
            present[:, member] = 1
        return (
            batch.contiguous(memory_format=torch.channels_last),
            present,
            torch.full((count,), target, device=self.device),
            views,
            None if intensity is None else torch.full((count,), intensity, device=self.device),
        )

    @contextlib.contextmanager
    def telling_of_memory(self) -> Iterator[None]:
        """See `DeviceBackend.telling_of_memory`."""
        try:
            yield
        except RuntimeError as error:
            if tells_of_memory(error):
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                raise MemoryError(str(error).splitlines()[0]) from None
            raise


class OnnxBackend:
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
            return self.run(*self._placed(images, members, target, views), intensity).cpu().numpy()

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
            scores, error = self.run_with_error(*self._placed(images, members, target, views), intensity)
            return scores.cpu().numpy(), error.cpu().numpy()

    def run(
        self, batch: Tensor, members: tuple[int, ...], target: int, views: Tensor, intensity: float | None
    ) -> Tensor:
        """See `DeviceBackend.run`."""
        return self._run(["scores"], batch, members, target, views, intensity)[0]

    def run_with_error(
        self, batch: Tensor, members: tuple[int, ...], target: int, views: Tensor, intensity: float | None
    ) -> tuple[Tensor, Tensor]:
        """See `DeviceBackend.run_with_error`."""
        scores, error = self._run(["scores", "error"], batch, members, target, views, intensity)
        return scores, error

    def _placed(
        self, images: NDArray[np.float32], members: tuple[int, ...], target: int, views: NDArray[np.int64]
    ) -> tuple[Tensor, tuple[int, ...], int, Tensor]:
        """The arrays on the device, beside what needs no placing."""
        return torch.from_numpy(images).to(self.device), members, target, torch.from_numpy(views).to(self.device)

    def _run(
        self,
        wanted: list[str],
        batch: Tensor,
        members: tuple[int, ...],
        target: int,
        views: Tensor,
        intensity: float | None,
    ) -> list[Tensor]:
        count = len(batch)
        present = torch.zeros(count, len(MODALITIES), device=self.device)
        for member in members:
            present[:, member] = 1
        given = {
            "images": batch.contiguous(),
            "present": present,
            "target": torch.full((count,), target, device=self.device),
            "view": views.contiguous(),
            "intensity": torch.full((count,), intensity or 0.0, device=self.device),
        }
        made = {name: torch.empty(count, 1, *batch.shape[2:], device=self.device) for name in wanted}
        binding = self._session.io_binding()
        for name, tensor in given.items():
            if name in self._inputs:
                binding.bind_input(name, *self._place_of(tensor))
        for name, tensor in made.items():
            binding.bind_output(name, *self._place_of(tensor))
        if self.device.type == "cuda":
            # onnxruntime has a stream of its own, which does not wait for torch's.
            torch.cuda.current_stream(self.device).synchronize()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return [image[:, 0] for image in made.values()]

    def _place_of(self, tensor: Tensor) -> tuple[str, int, type[np.generic], tuple[int, ...], int]:
        """Where a contiguous tensor lies, in the words of onnxruntime."""
        kind = np.int64 if tensor.dtype == torch.int64 else np.float32
        return self.device.type, self.device.index or 0, kind, tuple(tensor.shape), tensor.data_ptr()

    @contextlib.contextmanager
    def telling_of_memory(self) -> Iterator[None]:
        """See `DeviceBackend.telling_of_memory`."""
        try:
            yield
        # Its errors share no class but the most general.
        except Exception as error:
            if tells_of_memory(error):
                raise MemoryError(str(error).splitlines()[0]) from None
            raise


def tells_of_memory(error: Exception) -> bool:
    """Whether an error of torch, CUDA's libraries or onnxruntime says that memory ran out."""
    text = f"{type(error).__name__}: {error}".lower()
    return any(words in text for words in ("outofmemory", "allocate memory", "out of memory", "alloc_failed"))
