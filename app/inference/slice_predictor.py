"""Whole volumes on a GPU: they cross the bus once each way; z-scores, slices and the fusion of views are made there.

The counterpart of `app.inference.slice_runner.SliceRunner` and `app.inference.view_fusion` on numpy volumes: the same result, but for the rounding
of a GPU.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from app.core.constants import MODALITIES, VIEWS, Modality, View
from app.core.errors import CaseError
from app.core.types import VolumeArray
from app.inference.backends import DeviceBackend
from app.inference.slice_runner import Batches, by_size, members_of
from app.inference.view_fusion import BEYOND, FusedPrediction, FusionOptions, TtaPass, ViewFusion, view_weights
from app.preprocessing.normalization import Intensity
from app.preprocessing.slices import SLICE_AXIS, Window, overlap

log = logging.getLogger(__name__)

#: On a GPU a batch is filled up to a multiple of this: cuDNN plans every convolution anew for each size.
FILLED = 16


class ResidentRunner:
    """Runs a network over volumes that stay on its device."""

    def __init__(self, backend: DeviceBackend, batch_size: int) -> None:
        self.backend, self.batches = backend, Batches(batch_size)
        self._staging = torch.empty(0)
        self._filled = FILLED if backend.device.type == "cuda" else 1

    def fuse(
        self,
        volumes: Mapping[Modality, VolumeArray],
        measured: Mapping[Modality, Intensity],
        planned: Sequence[TtaPass],
        joining: FusionOptions,
        target: Modality,
        background: float,
        intensity: float | None = None,
        *,
        fill: bool = True,
    ) -> FusedPrediction:
        """Scores of the target and, where asked for, how wrong they are expected to be.

        Args:
            volumes: one to three sequences in the file's units, float32, background 0, axes (left, posterior,
                superior).
            measured: how each becomes scores.
            planned: what is run (`app.inference.view_fusion.passes`).
            joining: how it becomes one volume; where it needs errors, the network must have the head.
            background: score of background voxels, of missing sequences and of what no window reaches.
            fill: False where background voxels keep the score of their intensity (schemes that name no background).

        Raises:
            CaseError: the volumes, or one slice, do not fit into the device's memory.
        """
        try:
            with self.backend.telling_of_memory(), torch.inference_mode():
                scores = self._scores(volumes, measured, background, fill)
                joiner, share = ViewFusion(joining.fusion, torch), view_weights(planned)
                for one in planned:
                    seen = scores.flip(1) if one.mirrored else scores
                    for view, made, error in self._volumes(
                        seen, one.windows, members_of(volumes), target, background, intensity, joining.needs_error
                    ):
                        turned = [v if v is None or not one.mirrored else v.flip(0) for v in (made, error)]
                        joiner.add(view, turned[0], turned[1], share[view])
                fused, squares = joiner.result()
                return FusedPrediction.of(fused.cpu().numpy(), None if squares is None else squares.cpu().numpy())
        except MemoryError as error:
            raise CaseError(f"the subject does not fit into the device's memory ({error}); use --device cpu.") from None

    def _volumes(
        self,
        scores: Tensor,
        windows: Sequence[Window],
        members: tuple[int, ...],
        target: Modality,
        background: float,
        intensity: float | None,
        with_error: bool,
    ) -> Iterator[tuple[View, Tensor, Tensor | None]]:
        """Per view: what the network makes of its slices as a volume, and the expected error where it is wanted."""
        for group in by_size(windows):
            counts = [len(w.slices) for w in group]
            made, errors = self._run(scores, group, members, target, background, intensity, with_error)
            doubts = [None] * len(group) if errors is None else torch.split(errors, counts)
            for window, stack, doubt in zip(group, torch.split(made, counts), doubts, strict=True):
                image = torch.full(scores.shape[1:], background, device=self.backend.device)
                _paste(stack, window, image)
                if doubt is None:
                    yield window.view, image, None
                    continue
                error = torch.full_like(image, BEYOND)
                _paste(doubt, window, error)
                yield window.view, image, error

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
        with_error: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """What the network makes of the slices of all windows of one size, n x rows x columns, and the errors."""
        images = torch.cat([_cut(scores, w, background) for w in group]).to(self.backend.dtype)
        views = torch.tensor([VIEWS.index(w.view) for w in group for _ in w.slices]).to(self.backend.device)
        made = torch.empty(len(images), *group[0].size, device=self.backend.device)
        errors = torch.empty_like(made) if with_error else None
        index = MODALITIES.index(target)

        def step(first: int, end: int) -> None:
            with self.backend.telling_of_memory():
                chunk, codes = images[first:end], views[first:end]
                if lacking := -len(chunk) % self._filled:
                    chunk = torch.cat([chunk, chunk[-1:].expand(lacking, -1, -1, -1)])
                    codes = torch.cat([codes, codes[-1:].expand(lacking)])
                if errors is None:
                    made[first:end] = self.backend.run(chunk, members, index, codes, intensity)[: end - first]
                    return
                scores, doubts = self.backend.run_with_error(chunk, members, index, codes, intensity)
                made[first:end], errors[first:end] = scores[: end - first], doubts[: end - first]

        self.batches.each(len(images), step)
        return made, errors


def _cut(scores: Tensor, window: Window, background: float) -> Tensor:
    """The window's slices, n x 4 x rows x columns, of volumes 4 x X x Y x Z (see `app.preprocessing.slices.crop`)."""
    stack = scores.movedim(1 + SLICE_AXIS[window.view], 0)[list(window.slices)]
    out = scores.new_full((*stack.shape[:2], *window.size), background)
    inside, outside = overlap(window, tuple(stack.shape[2:]))
    out[:, :, outside[0], outside[1]] = stack[:, :, inside[0], inside[1]]
    return out


def _paste(slices: Tensor, window: Window, volume: Tensor) -> None:
    """Puts n x rows x columns into a volume's window, the overhang left out (see `app.preprocessing.slices.paste`)."""
    stack = volume.movedim(SLICE_AXIS[window.view], 0)
    inside, outside = overlap(window, tuple(stack.shape[1:]))
    stack[list(window.slices), inside[0], inside[1]] = slices[:, outside[0], outside[1]]
