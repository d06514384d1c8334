"""A 3D segmenter that is ready to run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from app.core.config import RuntimeOptions
from app.core.constants import CLASSES, MODALITIES, TUMOUR_TYPES, VIEWS, Modality, View
from app.core.errors import CaseError
from app.core.types import MaskArray, VolumeArray
from app.data.cases import tumour_type
from app.inference.backends import memory_errors
from app.inference.device import GPU_BATCH, Machine, Runtime, choose_runtime
from app.inference.sliding_window import Sides, slide
from app.networks.unet import Segmenter2d
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import Normalization, measure, normalize
from app.preprocessing.slices import Canvas, crop, paste, place_window
from app.registry.checkpoints import load_segmenter3d
from app.registry.manifest import Entry, spec_as
from app.registry.spec import Segmenter3dSpec

#: Share of a window that the next one covers again.
OVERLAP: Final = 0.5


@dataclass(frozen=True)
class TumourSegmenter:
    """A 3D segmenter that is ready to run.

    Attributes:
        network: a 3D segmenter on its device, in eval mode.
        window: sides of what it sees at once.
        precision: `torch.bfloat16` or `torch.float32`; in bfloat16 by autocast.
    """

    network: nn.Module
    normalization: Normalization
    window: Sides
    device: torch.device
    precision: torch.dtype = torch.float32

    @classmethod
    def open(cls, entry: Entry, device: str = "auto") -> TumourSegmenter:
        """Load a 3D segmenter of a manifest.

        Raises:
            WeightsError: the entry is of another kind, or its file is missing or damaged.
            DeviceError: the device is not there.
        """
        return cls.on(entry, choose_runtime(entry.files, Machine.probe(), RuntimeOptions(device, "torch")))

    @classmethod
    def on(cls, entry: Entry, runtime: Runtime) -> TumourSegmenter:
        """Load a 3D segmenter for a runtime that is settled.

        Raises:
            WeightsError: as `open`.
        """
        spec = spec_as(entry, Segmenter3dSpec)
        chosen = torch.device(runtime.device)
        precision = torch.bfloat16 if runtime.precision == "bf16" else torch.float32
        return cls(load_segmenter3d(entry).to(chosen), spec.normalization, spec.window, chosen, precision)

    def segment(self, volumes: Mapping[Modality, VolumeArray]) -> NDArray[np.uint8]:
        """Find the tumour: 0 none, 1 necrotic core, 2 oedema, 3 enhancing tumour.

        Args:
            volumes: all four sequences in the file's units, float32, background 0, one shape.

        Raises:
            CaseError: they show no common brain, or a window does not fit into memory.
        """
        brain = vote_foreground(volumes)
        if not brain.any():
            raise CaseError("the sequences show no common brain.")
        background = -1.0 if self.normalization.background is None else self.normalization.background
        normalized = np.stack([self._normalize(volumes[m], m, background) for m in MODALITIES])
        return self.segment_normalized(normalized, brain, background)

    def _normalize(self, volume: VolumeArray, modality: Modality, background: float) -> VolumeArray:
        """Make z-scores; an empty volume, which some system failed to make, is all background."""
        if not (volume > 0).any():
            return np.full(volume.shape, background, dtype=np.float32)
        return normalize(volume, measure(volume, modality, self.normalization), background)

    def segment_normalized(
        self, normalized: NDArray[np.float32], brain: MaskArray, background: float
    ) -> NDArray[np.uint8]:
        """Find the tumour as `segment` does, in z-scores.

        Args:
            normalized: float32 4 x X x Y x Z, in challenge order.
            brain: bool X x Y x Z; nothing is found outside.
            background: normalized value beyond the volume's edge.

        Raises:
            CaseError: a window does not fit into memory.
        """

        def run(window: NDArray[np.float32]) -> NDArray[np.float32]:
            with (
                torch.inference_mode(),
                torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16),
            ):
                logits = self.network(torch.from_numpy(window)[None].to(self.device))
            probabilities: NDArray[np.float32] = logits.float().softmax(dim=1)[0].cpu().numpy()
            return probabilities

        try:
            with memory_errors(self.device):
                probabilities = slide(normalized, run, CLASSES, self.window, brain, background, OVERLAP)
        except MemoryError as error:
            raise CaseError(
                f"the tumour segmenter does not fit into the device's memory ({error}); use --device cpu."
            ) from None
        return np.where(brain, probabilities.argmax(axis=0), 0).astype(np.uint8)


@torch.inference_mode()
def segment_slices(
    network: Segmenter2d,
    volumes: Sequence[VolumeArray],
    brain: MaskArray,
    views: Sequence[View],
    canvas: Canvas,
    subject: str,
    device: torch.device,
    background: float,
) -> NDArray[np.uint8]:
    """Segment one subject by a 2D segmenter: labels 0 to 3, axes (left, posterior, superior).

    Args:
        volumes: four normalized sequences in challenge order.
        brain: bool, same shape.
        views: whose probabilities are averaged.
        subject: its name may state the tumour type.
        background: fills what lies beyond the volume.
    """
    kind = tumour_type(subject)
    code = TUMOUR_TYPES.index(kind) if kind in TUMOUR_TYPES else -1
    network = network.eval()
    shares: NDArray[np.float32] = np.zeros((3, *brain.shape), dtype=np.float32)
    for view in views:
        window = place_window(brain, view, canvas)
        stacks = np.stack([crop(volume, window, background) for volume in volumes], axis=1)
        predictions = []
        for images in torch.split(torch.from_numpy(stacks), GPU_BATCH if device.type == "cuda" else 4):
            index = torch.full((len(images),), VIEWS.index(view), device=device)
            kinds = torch.full((len(images),), code, device=device)
            predictions.append(network(images.to(device), index, kinds).float().softmax(dim=1)[:, 1:].cpu().numpy())
        shares_of_view = np.concatenate(predictions)
        for channel in range(3):
            shares[channel] += paste(shares_of_view[:, channel], window, brain.shape, 0.0) / len(views)
    rest = 1 - shares.sum(axis=0)
    labels = np.where(shares.max(axis=0) > rest, shares.argmax(axis=0) + 1, 0)
    return np.where(brain, labels, 0).astype(np.uint8)
