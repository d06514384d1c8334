"""Make the volumes of an exam from its brain's outline and its lesion, slice by slice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from app.core.types import MaskArray
from app.inference.simulation.atlas import Atlas
from app.inference.simulation.consistency import even_brightness, even_slices, stripe_ratio
from app.networks.architectures import CgSamrConfig
from app.networks.cgsamr.inputs import network_inputs
from app.preprocessing.foreground import bounding_box
from app.preprocessing.normalization import BACKGROUND
from app.preprocessing.slices import Canvas, Window, paste, place_window

if TYPE_CHECKING:
    from app.networks.cgsamr import Simulator


@dataclass(frozen=True)
class SimulatedVolumes:
    """Hold what was made of one outline.

    Attributes:
        images: float32, sequences x L x P x S, in [-1, 1]; -1 outside the brain.
        confidence: float32, same shape, in (0, 1); 0 outside the brain; None where the network has none.
        stripes: per sequence the stripe ratio as stacked, and as made even.
    """

    images: NDArray[np.float32]
    confidence: NDArray[np.float32] | None
    stripes: tuple[tuple[float, float], ...]


class ExamSimulator:
    """Run a network over the axial slices of an outline.

    Args:
        network: in eval mode, on the device.
        config: its shape.
        canvas: window of its slices.
        atlas: what tells it of anatomy.
        batch: slices at once.
    """

    def __init__(
        self,
        network: Simulator,
        config: CgSamrConfig,
        canvas: Canvas,
        atlas: Atlas,
        device: torch.device,
        batch: int = 8,
    ) -> None:
        # Convolutions are faster so on a processor.
        self._network: Simulator = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._config, self._canvas, self.atlas = config, canvas, atlas
        self._device, self._batch = device, batch

    @property
    def has_confidence(self) -> bool:
        """Whether the network judges itself."""
        return self._config.form != "pix2pix" and self._config.confidence

    @property
    def sees_own_tissue(self) -> bool:
        """Whether the network is told of the brain's own tissue."""
        return self._config.prior in {"subject", "tissue"}

    @torch.inference_mode()
    def run(
        self,
        brain: MaskArray,
        labels: NDArray[np.uint8],
        tissue: NDArray[np.uint8] | None = None,
        even: bool = True,
    ) -> SimulatedVolumes:
        """Make all sequences.

        Args:
            brain: bool, L x P x S, with at least one voxel.
            labels: uint8, same shape; outside the brain they do not count.
            tissue: of the brain, on its box (`app.inference.simulation.own_tissue`); the atlas's if not given.
            even: whether slices are made to agree (`app.inference.simulation.consistency`).
        """
        window = place_window(brain, "axial", self._canvas)
        images, confidence = self._slices(brain, labels, tissue, window)
        volumes = np.stack([paste(s, window, brain.shape, BACKGROUND) for s in np.moveaxis(images, 1, 0)])
        volumes = np.where(brain, volumes, np.float32(BACKGROUND))
        stacked = [stripe_ratio(v, brain) for v in volumes]
        if even:
            if self.sees_own_tissue:
                volumes = self._evened(volumes, tissue, brain, labels > 0)
            volumes = np.stack([even_slices(v, brain) for v in volumes]).clip(-1, 1)
        stripes = tuple((before, stripe_ratio(v, brain)) for before, v in zip(stacked, volumes, strict=True))
        if confidence is None:
            return SimulatedVolumes(volumes, None, stripes)
        sure = np.stack([paste(s, window, brain.shape, 0.0) for s in np.moveaxis(confidence, 1, 0)])
        return SimulatedVolumes(volumes, np.where(brain, sure, np.float32(0)), stripes)

    def _evened(
        self,
        volumes: NDArray[np.float32],
        tissue: NDArray[np.uint8] | None,
        brain: MaskArray,
        lesion: MaskArray,
    ) -> NDArray[np.float32]:
        """Even the brightness of volumes on the box of the brain."""
        box, even = bounding_box(brain), volumes.copy()
        known = self.atlas.tissue_on(brain[box].shape, tissue)
        for volume in even:
            volume[box] = even_brightness(volume[box], known, brain[box], lesion[box])
        return even

    def _slices(
        self, brain: MaskArray, labels: NDArray[np.uint8], tissue: NDArray[np.uint8] | None, window: Window
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """All slices of the window, slices x sequences x rows x columns, and their confidence."""
        images, sure = [], []
        for first in range(0, len(window.slices), self._batch):
            numbers = window.slices[first : first + self._batch]
            inputs = self._inputs(brain, labels, tissue, window, numbers)
            made = self._network(inputs.contiguous(memory_format=torch.channels_last))
            images.append(made.image.float().cpu())
            if made.confidence is not None:
                whole = F.interpolate(made.confidence, scale_factor=2.0, mode="bilinear", align_corners=False)
                sure.append(whole.float().cpu())
        return torch.cat(images).numpy(), torch.cat(sure).numpy() if sure else None

    def _inputs(
        self,
        brain: MaskArray,
        labels: NDArray[np.uint8],
        tissue: NDArray[np.uint8] | None,
        window: Window,
        numbers: tuple[int, ...],
    ) -> Tensor:
        box = bounding_box(brain)
        extent = [side.stop - side.start for side in box]
        kind, size = self._config.prior, window.size
        priors = np.zeros((len(numbers), self._config.prior_channels, *size), np.float32)
        planes = np.zeros((2, len(numbers), *size), np.int64)
        place = tuple(slice(side.start - first, side.stop - first)
                      for side, first in zip(box[:2], window.start, strict=True))  # fmt: skip
        for row, number in enumerate(numbers):
            priors[row][:, place[0], place[1]] = self.atlas.prior(kind, extent, number - box[2].start, tissue)
            for plane, volume in zip(planes, (brain, labels), strict=True):
                plane[row][place] = volume[box[0], box[1], number]
        outline, lesion, prior = (torch.from_numpy(v).to(self._device) for v in (planes[0], planes[1], priors))
        return network_inputs(outline[:, None].float(), lesion, prior, self._config)
