"""A 2D network over whole volumes: slices in batches, pasted and fused on its device.

On a processor the normalized volumes are read where they lie. On a GPU the intensities cross the bus once, and z-scores
are made there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from app.core.constants import MODALITIES, VIEWS, Modality, View
from app.core.errors import CaseError
from app.core.types import VolumeArray
from app.inference.backends import Backend, memory_errors
from app.inference.prepared import Prepared
from app.inference.slicewise.guided_interpolation import fill_between
from app.inference.slicewise.view_fusion import (
    ERROR_OUTSIDE,
    FusedPrediction,
    FusionOptions,
    TtaPass,
    ViewFusion,
    view_weights,
)
from app.preprocessing.slices import SLICE_AXIS, Window, middle_slices, neighbour_offsets, overlap

log = logging.getLogger(__name__)

#: On a GPU a batch is filled up to a multiple of this: cuDNN plans every convolution anew for each size.
GPU_MULTIPLE = 16


class Batches:
    """The number of slices per call, halved for good whenever memory runs out.

    Attributes:
        size: slices per call.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def each(self, count: int, step: Callable[[int, int], None]) -> None:
        """Call `step(first, end)` until all of `count` are done.

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


@dataclass(frozen=True)
class _Request:
    """One case on the network's device.

    Attributes:
        volumes: normalized, X x Y x Z each, by the index of their sequence.
        target: index of the sequence to make.
        padding: value of missing sequences and of what no window reaches.
        intensity: the target's median in the brain, for networks with an intensity code.
        with_error: whether the expected error is wanted.
        brain: bool, X x Y x Z: where slices that are left out have detail.
    """

    volumes: dict[int, Tensor]
    target: int
    padding: float
    intensity: float | None
    with_error: bool
    brain: Tensor


class SlicePredictor:
    """Predict whole volumes by a network that sees slices.

    Args:
        backend: the network.
        batch_size: slices per call, to begin with.
        neighbours: slices on each side that the network sees beside the one in the middle.
        slices: that one pass of the network makes.
    """

    def __init__(self, backend: Backend, batch_size: int, neighbours: int = 0, slices: int = 1) -> None:
        self.backend, self.batches = backend, Batches(batch_size)
        self._offsets, self._made = neighbour_offsets(neighbours), neighbour_offsets(slices // 2)
        self._multiple = GPU_MULTIPLE if self.normalizes else 1
        self._staging = torch.empty(0)

    @property
    def normalizes(self) -> bool:
        """Whether z-scores are made on the device, so that `Prepared.normalized` is not needed."""
        return self.backend.device.type == "cuda"

    def predict(
        self,
        prepared: Prepared,
        target: Modality,
        passes: Sequence[TtaPass],
        options: FusionOptions,
        intensity: float | None = None,
    ) -> FusedPrediction:
        """Predict one sequence, all passes and views fused.

        Args:
            prepared: one to three sequences; other than `target`.
            target: the sequence to make.
            passes: the windows to run (`app.inference.slicewise.view_fusion.tta_passes`).
            options: how the views become one volume; where that needs errors, the network must have the head.
            intensity: the target's median in the brain, for networks with an intensity code.

        Raises:
            CaseError: the volumes, or one slice, do not fit into the device's memory.
        """
        try:
            with memory_errors(self.backend.device), torch.inference_mode():
                request = _Request(
                    self._load(prepared), MODALITIES.index(target), prepared.padding, intensity, options.needs_error,
                    torch.from_numpy(prepared.foreground).to(self.backend.device),
                )  # fmt: skip
                fusion, weights = ViewFusion(options.method), view_weights(passes)
                for tta_pass in passes:
                    for group in by_size(tta_pass.windows):
                        self._add_group(request, group, tta_pass.mirrored, fusion, weights)
                return fusion.result(prepared.foreground)
        except MemoryError as error:
            raise CaseError(f"the subject does not fit into the device's memory ({error}); use --device cpu.") from None

    def _load(self, prepared: Prepared) -> dict[int, Tensor]:
        """Bring the normalized sequences to the device, by index."""
        if self.normalizes:
            return self._normalize(prepared)
        return {i: torch.from_numpy(prepared.normalized[MODALITIES[i]]) for i in members_of(prepared.arrays)}

    def _normalize(self, prepared: Prepared) -> dict[int, Tensor]:
        """Make z-scores on the device, as `app.preprocessing.normalization.normalize` does in numpy."""
        volumes = {}
        for index, values in zip(members_of(prepared.arrays), self._upload(prepared.arrays), strict=True):
            intensity = prepared.measured[MODALITIES[index]]
            normalized = (values.clamp(max=intensity.clip) - intensity.mean) / intensity.std
            if prepared.background is not None:
                normalized = torch.where(values > 0, normalized, prepared.background)
            volumes[index] = normalized
        return volumes

    def _upload(self, arrays: Mapping[Modality, VolumeArray]) -> Tensor:
        """Copy the present sequences to the device, through page-locked memory kept for the next case."""
        members = members_of(arrays)
        shape = (len(members), *arrays[MODALITIES[members[0]]].shape)
        count = math.prod(shape)
        # Fewer sequences take a part of it: a trial on an exam leaves one out.
        if self._staging.numel() < count:
            try:
                self._staging = torch.empty(count, pin_memory=self.normalizes)
            except RuntimeError as error:
                log.debug("No page-locked memory (%s): volumes reach the GPU more slowly.", error)
                self._staging = torch.empty(count)
        staged = self._staging[:count].view(shape)
        for slot, index in zip(staged, members, strict=True):
            slot.numpy()[...] = arrays[MODALITIES[index]]
        return staged.to(self.backend.device, non_blocking=True)

    def _add_group(
        self, request: _Request, group: list[Window], mirrored: bool, fusion: ViewFusion, weights: Mapping[View, float]
    ) -> None:
        """Predict the views of one size and add them to the fusion, volume by volume; none is kept here."""
        made: dict[Window, tuple[Tensor, Tensor | None]] = {}
        for same in by_size([part for window in group for part in window.parts or (window,)]):
            made |= self._windows(request, same, mirrored)
        shape = next(iter(request.volumes.values())).shape
        for window in group:
            parts = [(part, *made.pop(part)) for part in window.parts or (window,)]
            image = torch.full(shape, request.padding, device=self.backend.device)
            error = torch.full(shape, ERROR_OUTSIDE, device=self.backend.device) if request.with_error else None
            for part, images, errors in parts:
                _paste(images, part, image)
                if error is not None and errors is not None:
                    _paste(errors, part, error)
            _fill(image, window, request)
            if error is not None:
                _fill(error, window)
            fusion.add(window.view, image, error, weights[window.view], mirrored)

    def _windows(
        self, request: _Request, windows: list[Window], mirrored: bool
    ) -> dict[Window, tuple[Tensor, Tensor | None]]:
        """Predict the slices of windows of one size: images and errors of each, n x rows x columns."""
        middles = [middle_slices(window.slices, len(self._made)) for window in windows]
        passes = [replace(window, slices=own) for window, own in zip(windows, middles, strict=True)]
        images, errors = self._slices(request, passes, mirrored)
        found, first = {}, 0
        for window, own in zip(windows, middles, strict=True):
            part = slice(first, first + len(own))
            first = part.stop
            error = None if errors is None else self._wanted(errors[part], window, own)
            found[window] = self._wanted(images[part], window, own), error
        return found

    def _wanted(self, slices: Tensor, window: Window, middles: Sequence[int]) -> Tensor:
        """Choose a window's slices among those that its passes made, n x S x rows x columns, in the window's order."""
        if len(self._made) == 1:
            return slices[:, 0]
        made = {
            middle + offset: (row, column)
            for row, middle in enumerate(middles)
            for column, offset in enumerate(self._made)
        }
        rows, columns = (list(part) for part in zip(*(made[index] for index in window.slices), strict=True))
        return slices[rows, columns]

    def _slices(self, request: _Request, group: list[Window], mirrored: bool) -> tuple[Tensor, Tensor | None]:
        """Predict all slices of windows of one size: images and errors, n x S x rows x columns."""
        count = sum(len(w.slices) for w in group)
        images = torch.empty(count, len(self._made), *group[0].size, device=self.backend.device)
        errors = torch.empty_like(images) if request.with_error else None

        def step(first: int, end: int) -> None:
            with memory_errors(self.backend.device):
                batch, views = self._batch(request, group, first, end)
                image, error = self.backend.run(
                    batch.flip(2) if mirrored else batch, tuple(request.volumes), request.target, views,
                    request.intensity, with_error=request.with_error,
                )  # fmt: skip
                for slices, out in ((image, images), (error, errors)):
                    if slices is not None and out is not None:
                        out[first:end] = (slices.flip(2) if mirrored else slices)[: end - first]

        self.batches.each(count, step)
        return images, errors

    def _filled(self, count: int) -> int:
        """Round the slices of a batch up to a number that the device knows: a power of two, or a multiple of one."""
        return -(-count // self._multiple) * self._multiple if count > self._multiple else 1 << (count - 1).bit_length()

    def _batch(self, request: _Request, group: list[Window], first: int, end: int) -> tuple[Tensor, Tensor]:
        """Cut the slices `first` to `end` of all windows.

        Returns:
            Slices, B x 4 x rows x columns (so for each offset), and their view indices (B,). B is `end - first`, or the
            next multiple that the device wants; the last slice is repeated up to there.
        """
        count = self._filled(end - first)
        channels = len(MODALITIES) * len(self._offsets)
        batch = torch.full((count, channels, *group[0].size), request.padding, dtype=self.backend.dtype,
                           device=self.backend.device)  # fmt: skip
        views: list[int] = []
        for window, indices in _parts(group, first, end):
            rows = slice(len(views), len(views) + len(indices))
            views += [VIEWS.index(window.view)] * len(indices)
            where = torch.tensor(indices, device=self.backend.device)
            for member, volume in request.volumes.items():
                for place, offset in enumerate(self._offsets):
                    _cut(volume, window, where + offset, batch[rows, place * len(MODALITIES) + member])
        batch[len(views) :] = batch[len(views) - 1]
        views += views[-1:] * (count - len(views))
        return batch, torch.tensor(views, device=self.backend.device)


def members_of(present: Iterable[Modality]) -> tuple[int, ...]:
    """List the indices of the present sequences, in challenge order."""
    names = set(present)
    return tuple(i for i, m in enumerate(MODALITIES) if m in names)


def by_size(windows: Sequence[Window]) -> Iterator[list[Window]]:
    """Group the windows that can share a batch."""
    for size in dict.fromkeys(w.size for w in windows):
        yield [w for w in windows if w.size == size]


def _parts(group: Sequence[Window], first: int, end: int) -> Iterator[tuple[Window, tuple[int, ...]]]:
    """Find the slices `first` to `end` among those of all windows, one after the other."""
    for window in group:
        if indices := window.slices[max(first, 0) : max(end, 0)]:
            yield window, indices
        first, end = first - len(window.slices), end - len(window.slices)


def _cut(volume: Tensor, window: Window, indices: Tensor, out: Tensor) -> None:
    """Copy slices of an X x Y x Z volume into `out`, n x rows x columns; those beyond its ends leave `out` alone."""
    stack = volume.movedim(SLICE_AXIS[window.view], 0)
    inside, outside = overlap(window, tuple(stack.shape[1:]))
    there = (indices >= 0) & (indices < len(stack))
    if bool(there.all()):
        out[:, outside[0], outside[1]] = stack[:, inside[0], inside[1]][indices].to(out.dtype)
    else:
        out[there, outside[0], outside[1]] = stack[:, inside[0], inside[1]][indices[there]].to(out.dtype)


def _paste(slices: Tensor, window: Window, volume: Tensor) -> None:
    """Put slices, n x rows x columns, into a volume's window."""
    stack = volume.movedim(SLICE_AXIS[window.view], 0)
    inside, outside = overlap(window, tuple(stack.shape[1:]))
    stack[:, inside[0], inside[1]][list(window.slices)] = slices[:, outside[0], outside[1]]


def _fill(volume: Tensor, window: Window, request: _Request | None = None) -> None:
    """Fill in the slices of a window that were left out.

    Args:
        request: the exam, for their detail; without it they lie on straight lines.
    """
    if window.step == 1:
        return
    part, guides, brain = _window_of(volume, window), None, None
    if request is not None:
        guides = torch.stack([_window_of(v, window) for v in request.volumes.values()])
        brain = _window_of(request.brain, window)
    fill_between(part, window.slices, window.step, guides, brain)


def _window_of(volume: Tensor, window: Window) -> Tensor:
    """The part of a volume inside a window, slices first; of the volume's memory."""
    stack = volume.movedim(SLICE_AXIS[window.view], 0)
    inside, _ = overlap(window, tuple(stack.shape[1:]))
    return stack[:, inside[0], inside[1]]
