"""Runs a generator over slices, in batches.

A backend is one small interface (`Backend`), so that torch and onnxruntime, CPU and GPU, are the same to everything
above.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from app.constants import MODALITIES, VIEWS, Modality, View
from app.errors import CaseError, DeviceError
from app.networks import load_generator
from app.runtime import Runtime
from app.types import SliceStack, VolumeArray
from app.views import Window, cut
from app.weights import Entry

if TYPE_CHECKING:
    from torch import Tensor

    from app.models.generator import Generator
    from app.models.unet import PlainGenerator

log = logging.getLogger(__name__)


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
            # The same input gives the same bytes, and float32 is float32.
            torch.backends.cudnn.deterministic = True
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.allow_tf32 = False
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
        """Float32 B x H x W scores; as `predict`, with everything on the device."""
        with self._torch.inference_mode():
            scores: Tensor = self.network(*self._asked(batch, members, target, views, intensity), members=members)
            return scores[:, 0].float()

    def run_with_error(
        self, batch: Tensor, members: tuple[int, ...], target: int, views: Tensor, intensity: float | None
    ) -> tuple[Tensor, Tensor]:
        """As `run`, and the expected absolute error, float32 B x H x W; for networks with such a head."""
        with self._torch.inference_mode():
            network = self.network
            features = network.features(*self._asked(batch, members, target, views, intensity), members=members)
            return network.image(features)[:, 0].float(), network.error(features)[:, 0]

    def _placed(self, images: NDArray[np.float32], views: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        torch = self._torch
        return torch.from_numpy(images).to(self.device, self.dtype), torch.from_numpy(views).to(self.device)

    def _asked(
        self, batch: Tensor, members: tuple[int, ...], target: int, views: Tensor, intensity: float | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """What a network takes, but for `members`."""
        torch, count = self._torch, len(batch)
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
        """Torch's ways to say that memory ran out, as MemoryError."""
        try:
            yield
        except RuntimeError as error:
            if tells_of_memory(error):
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
            # No search among convolutions: it would be done again for every batch size, with another result perhaps.
            cuda = {"device_id": index, "use_tf32": 0, "cudnn_conv_algo_search": "HEURISTIC"}
            providers.insert(0, ("CUDAExecutionProvider", cuda))
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
        return self._run(["scores"], images, members, target, views, intensity)[0]

    def predict_with_error(
        self,
        images: NDArray[np.float32],
        members: tuple[int, ...],
        target: int,
        views: NDArray[np.int64],
        intensity: float | None,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See `Backend.predict_with_error`."""
        scores, error = self._run(["scores", "error"], images, members, target, views, intensity)
        return scores, error

    def _run(
        self,
        wanted: list[str],
        images: NDArray[np.float32],
        members: tuple[int, ...],
        target: int,
        views: NDArray[np.int64],
        intensity: float | None,
    ) -> list[NDArray[np.float32]]:
        count = len(images)
        feed = {
            "images": images,
            "present": _presence(members, count),
            "target": np.full(count, target, dtype=np.int64),
            "view": views,
            "intensity": np.full(count, intensity or 0.0, dtype=np.float32),
        }
        try:
            found = self._session.run(wanted, {k: v for k, v in feed.items() if k in self._inputs})
        # Its errors share no class but the most general.
        except Exception as error:
            if tells_of_memory(error):
                raise MemoryError(str(error).splitlines()[0]) from None
            raise
        return [image[:, 0] for image in found]


def tells_of_memory(error: Exception) -> bool:
    """Whether an error of torch, CUDA's libraries or onnxruntime says that memory ran out."""
    text = f"{type(error).__name__}: {error}".lower()
    return any(words in text for words in ("outofmemory", "allocate memory", "out of memory", "alloc_failed"))


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
    """Cuts volumes into slices and runs a backend over them."""

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
        return self._each_size(scores, windows, target, background, intensity, with_error=False)[0]

    def predict_with_error(
        self,
        scores: Mapping[Modality, VolumeArray],
        windows: Sequence[Window],
        target: Modality,
        background: float,
        intensity: float | None = None,
    ) -> tuple[dict[View, SliceStack], dict[View, SliceStack]]:
        """As `predict`, and the expected absolute error in scores likewise; for networks with such a head."""
        return self._each_size(scores, windows, target, background, intensity, with_error=True)

    def _each_size(
        self,
        scores: Mapping[Modality, VolumeArray],
        windows: Sequence[Window],
        target: Modality,
        background: float,
        intensity: float | None,
        with_error: bool,
    ) -> tuple[dict[View, SliceStack], dict[View, SliceStack]]:
        made: dict[View, SliceStack] = {}
        errors: dict[View, SliceStack] = {}
        for group in by_size(windows):
            images, doubts = self._run(scores, group, target, background, intensity, with_error)
            made |= images
            errors |= doubts
        return made, errors

    def _run(
        self,
        scores: Mapping[Modality, VolumeArray],
        group: list[Window],
        target: Modality,
        background: float,
        intensity: float | None,
        with_error: bool,
    ) -> tuple[dict[View, SliceStack], dict[View, SliceStack]]:
        """As `predict_with_error`, of windows of one size; without errors where those are not wanted."""
        members, index = members_of(scores), MODALITIES.index(target)
        out, errors = ({w.view: np.empty((len(w.slices), *w.size), dtype=np.float32) for w in ws}
                       for ws in (group, group if with_error else ()))  # fmt: skip
        stacks = {w.view: {m: cut(v, w, background) for m, v in scores.items()} for w in group}
        jobs = [(w.view, i) for w in group for i in range(len(w.slices))]

        def step(first: int, end: int) -> None:
            chunk = jobs[first:end]
            images = np.full((len(chunk), len(MODALITIES), *group[0].size), background, dtype=np.float32)
            for row, (view, place) in enumerate(chunk):
                for member in members:
                    images[row, member] = stacks[view][MODALITIES[member]][place]
            views = np.array([VIEWS.index(view) for view, _ in chunk], dtype=np.int64)
            if not with_error:
                _spread(self.backend.predict(images, members, index, views, intensity), chunk, out)
                return
            made, doubts = self.backend.predict_with_error(images, members, index, views, intensity)
            _spread(made, chunk, out)
            _spread(doubts, chunk, errors)

        self.batches.each(len(jobs), step)
        return out, errors


def _spread(images: NDArray[np.float32], places: list[tuple[View, int]], out: dict[View, SliceStack]) -> None:
    """Puts a batch's slices where they belong."""
    for (view, index), image in zip(places, images, strict=True):
        out[view][index] = image


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
