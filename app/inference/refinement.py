"""The optional second stage: a 3D network over overlapping windows of what the first stage made.

It works in model space, before anything is stretched or cleared: there it was trained. As in the paper, z-scores are
over non-zero voxels; here they are clipped at a percentile first, and the background is not 0 (see
`app.preprocessing.normalization`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from app.core.constants import MODALITIES, Modality
from app.core.errors import CaseError, WeightsError
from app.core.types import MaskArray, VolumeArray
from app.inference.backends import is_memory_error
from app.inference.device import Runtime
from app.inference.slice_predictor import members_of
from app.inference.sliding_window import Sides, slide
from app.preprocessing.foreground import bounding_box
from app.preprocessing.normalization import Normalization
from app.registry.checkpoints import load_refiner
from app.registry.manifest import Entry, Identity, spec_as
from app.registry.spec import RefinerSpec

if TYPE_CHECKING:
    from app.networks.enhancer import Enhancer
    from app.networks.refiner import Refiner

log = logging.getLogger(__name__)

#: A window below this sees too little to be worth its name.
LEAST_WINDOW = 32


class VolumeRefiner:
    """A refiner that is ready to run.

    Args:
        identity: its name and checksum.
        spec: its windows.
        network: float32 weights; becomes the runtime's own.
        runtime: device and precision; it is torch's whatever the first stage runs on.

    Attributes:
        makes: the sequences that it refines.
    """

    def __init__(self, identity: Identity, spec: RefinerSpec, network: Refiner | Enhancer, runtime: Runtime) -> None:
        import torch

        self._torch, self.identity, self.spec = torch, identity, spec
        self._device = torch.device(runtime.device)
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[runtime.precision]
        network = network.eval().to(self._device, dtype)
        self._network: Refiner | Enhancer = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self._overlap = spec.overlap
        self.window: Sides = spec.window
        self.makes: tuple[Modality, ...] = network.makes

    def refine(
        self,
        volume: VolumeArray,
        scores: Mapping[Modality, VolumeArray],
        target: Modality,
        foreground: MaskArray,
        background: float,
    ) -> VolumeArray:
        """Float32 scores of the target, axes (left, posterior, superior); `background` outside the foreground.

        Args:
            volume: what the first stage made, float32 scores, same axes; a voxel that is not finite is not looked at.
            scores: the present sequences, float32.
            foreground: where the brain is; windows cover the box around it.

        Raises:
            CaseError: not even the smallest window fits into memory.
        """
        box = bounding_box(foreground)
        inside = foreground[box]
        first = np.where(inside & np.isfinite(volume[box]), volume[box], np.float32(background))
        members = members_of(scores)
        seen = np.stack([first, *(scores[MODALITIES[i]][box] for i in members)])
        made = self._slide(seen, members, MODALITIES.index(target), inside, background)
        out = np.full(volume.shape, background, dtype=np.float32)
        out[box][inside] = made[inside]
        return out

    def _slide(
        self, seen: NDArray[np.float32], members: tuple[int, ...], target: int, inside: MaskArray, background: float
    ) -> VolumeArray:
        """`seen` through the network, with smaller windows once memory ran out; they stay so."""

        def run(window: NDArray[np.float32]) -> NDArray[np.float32]:
            return self._run(window, members, target, background)

        while True:
            try:
                made: VolumeArray = slide(seen, run, 1, self.window, inside, background, self._overlap)[0]
                return made
            except MemoryError as error:
                self._halve(error)

    def _run(
        self, window: NDArray[np.float32], members: tuple[int, ...], target: int, background: float
    ) -> NDArray[np.float32]:
        torch = self._torch
        try:
            with torch.inference_mode():
                there = torch.from_numpy(window).to(self._device)[None]
                images = torch.full((1, len(MODALITIES), *window.shape[1:]), background, device=self._device)
                images[:, list(members)] = there[:, 1:]
                index = torch.full((1,), target, device=self._device)
                made: NDArray[np.float32] = self._network(there[:, :1], images, index, members)[0].cpu().numpy()
                return made
        except RuntimeError as error:
            if is_memory_error(error):
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()
                raise MemoryError(str(error).splitlines()[0]) from None
            raise

    def _halve(self, error: MemoryError) -> None:
        # A single voxel in the deepest layer could not be normalised.
        least = max(LEAST_WINDOW, 2 * self._network.factor)
        if max(self.window) <= least:
            raise CaseError(
                f"not even the refiner's smallest window fits into the device's memory ({error}); use --device cpu, or "
                "--no-refine."
            ) from None
        x, y, z = (max(least, side // 2 // self._network.factor * self._network.factor) for side in self.window)
        self.window = (x, y, z)
        log.warning("Memory ran out: the refiner's windows are now of %d x %d x %d voxels.", x, y, z)


def open_refiner(entry: Entry, normalization: Normalization, runtime: Runtime) -> VolumeRefiner:
    """Loads a refiner for a first stage.

    Args:
        normalization: the first stage's; both must see the same scores.

    Raises:
        WeightsError: the weights are missing or damaged, or the normalisations differ.
    """
    if entry.spec.normalization != normalization:
        raise WeightsError(f"the refiner {entry.name!r} sees other scores than the model that it would refine.")
    return VolumeRefiner(entry.identity, spec_as(entry, RefinerSpec), load_refiner(entry), runtime)
