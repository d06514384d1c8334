"""Whole volumes on a GPU: they cross the bus once each way; z-scores, slices and the fusion of views are made there.

The counterpart of `app.inference.SliceRunner` with `app.fuse.fuse_views`, for torch alone: the same result, but for the
rounding of a GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from app.constants import MODALITIES, VIEWS, Modality
from app.errors import CaseError
from app.inference import Batches, TorchBackend, by_size, members_of
from app.intensity import Intensity
from app.types import VolumeArray
from app.views import SLICE_AXIS, Window, overlap

log = logging.getLogger(__name__)

#: On a GPU a batch is filled up to a multiple of this: cuDNN plans every convolution anew for each size.
FILLED = 16


class ResidentRunner:
    """Runs a torch network over volumes that stay on its device."""

    def __init__(self, backend: TorchBackend, batch_size: int) -> None:
        self.backend, self.batches = backend, Batches(batch_size)
        self._staging = torch.empty(0)
        self._filled = FILLED if backend.device.type == "cuda" else 1

    def predict(
        self,
        volumes: Mapping[Modality, VolumeArray],
        measured: Mapping[Modality, Intensity],
        windows: Sequence[Window],
        target: Modality,
        background: float,
        intensity: float | None = None,
        *,
        fill: bool = True,
    ) -> VolumeArray:
        """Float32 scores of the target, axes (left, posterior, superior): the mean over the views.

        Args:
            volumes: one to three sequences in the file's units, float32, background 0, axes as above.
            measured: how each becomes scores.
            windows: one per view.
            background: score of background voxels, of missing sequences and of what no window reaches.
            fill: False where background voxels keep the score of their intensity (schemes that name no background).

        Raises:
            CaseError: the volumes, or one slice, do not fit into the device's memory.
        """
        try:
            with self.backend.telling_of_memory(), torch.inference_mode():
                scores = self._scores(volumes, measured, background, fill)
                total = torch.zeros(scores.shape[1:], device=self.backend.device)
                for group in by_size(windows):
                    stacks = self._run(scores, group, members_of(volumes), target, background, intensity)
                    for window, made in zip(group, stacks, strict=True):
                        stacked = torch.full_like(total, background)
                        _paste(made, window, stacked)
                        # The share is float32, as in `fuse_views`, so that both give the same bits.
                        total += float(np.float32(1 / len(windows))) * stacked
                out: VolumeArray = total.cpu().numpy()
                return out
        except MemoryError as error:
            raise CaseError(f"the subject does not fit into the device's memory ({error}); use --device cpu.") from None

    def _scores(
        self,
        volumes: Mapping[Modality, VolumeArray],
        measured: Mapping[Modality, Intensity],
        background: float,
        fill: bool,
    ) -> Tensor:
        """4 x X x Y x Z on the device; a missing sequence is all `background`."""
        raw = self._upload(list(volumes.values()))
        scores = torch.full((len(MODALITIES), *raw.shape[1:]), background, device=self.backend.device)
        for volume, modality in zip(raw, volumes, strict=True):
            m = measured[modality]
            score = (volume.clamp(max=m.clip) - m.mean) / m.std
            scores[MODALITIES.index(modality)] = torch.where(volume > 0, score, background) if fill else score
        return scores

    def _upload(self, arrays: list[VolumeArray]) -> Tensor:
        """The arrays as one tensor on the device, through page-locked memory that is kept from subject to subject."""
        shape = (len(arrays), *arrays[0].shape)
        on_gpu = self.backend.device.type == "cuda"
        if self._staging.shape != shape:
            try:
                self._staging = torch.empty(shape, pin_memory=on_gpu)
            except RuntimeError as error:
                log.debug("No page-locked memory (%s): volumes reach the GPU more slowly.", error)
                self._staging = torch.empty(shape)
        for slot, array in zip(self._staging, arrays, strict=True):
            slot.numpy()[...] = array
        return self._staging.to(self.backend.device, non_blocking=True)

    def _run(
        self,
        scores: Tensor,
        group: list[Window],
        members: tuple[int, ...],
        target: Modality,
        background: float,
        intensity: float | None,
    ) -> tuple[Tensor, ...]:
        """Per window of one size, what the network makes of its slices: n x rows x columns."""
        counts = [len(w.slices) for w in group]
        images = torch.cat([_cut(scores, w, background) for w in group]).to(self.backend.dtype)
        views = torch.tensor([VIEWS.index(w.view) for w in group for _ in w.slices]).to(self.backend.device)
        made = torch.empty(len(images), *group[0].size, device=self.backend.device)

        def step(first: int, end: int) -> None:
            with self.backend.telling_of_memory():
                chunk, codes = images[first:end], views[first:end]
                if lacking := -len(chunk) % self._filled:
                    chunk = torch.cat([chunk, chunk[-1:].expand(lacking, -1, -1, -1)])
                    codes = torch.cat([codes, codes[-1:].expand(lacking)])
                scores = self.backend.run(chunk, members, MODALITIES.index(target), codes, intensity)
                made[first:end] = scores[: end - first]

        self.batches.each(len(images), step)
        return torch.split(made, counts)


def _cut(scores: Tensor, window: Window, background: float) -> Tensor:
    """The window's slices, n x 4 x rows x columns, of volumes 4 x X x Y x Z (see `app.views.cut`)."""
    stack = scores.movedim(1 + SLICE_AXIS[window.view], 0)[list(window.slices)]
    out = scores.new_full((*stack.shape[:2], *window.size), background)
    inside, outside = overlap(window, tuple(stack.shape[2:]))
    out[:, :, outside[0], outside[1]] = stack[:, :, inside[0], inside[1]]
    return out


def _paste(slices: Tensor, window: Window, volume: Tensor) -> None:
    """Puts n x rows x columns into a volume's window, the overhang left out (see `app.views.paste`)."""
    stack = volume.movedim(SLICE_AXIS[window.view], 0)
    inside, outside = overlap(window, tuple(stack.shape[1:]))
    stack[list(window.slices), inside[0], inside[1]] = slices[:, outside[0], outside[1]]
