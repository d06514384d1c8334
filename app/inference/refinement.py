"""The optional second stage: a 3D network over overlapping windows of the first stage's volume.

It works in model space, before anything is stretched or cleared: there it was trained. As in the paper, z-scores are
over non-zero voxels; here they are clipped at a percentile first, and the background is not 0 (see
`app.preprocessing.normalization`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

from app.core.constants import MODALITIES, Modality
from app.core.errors import CaseError, WeightsError
from app.core.types import MaskArray, VolumeArray
from app.inference.backends import TORCH_TYPES, memory_errors
from app.inference.device import Runtime
from app.inference.slicewise.slice_predictor import members_of
from app.inference.sliding_window import Sides, slide
from app.preprocessing.foreground import bounding_box
from app.preprocessing.normalization import Normalization
from app.registry.checkpoints import load_refiner
from app.registry.identity import Identity
from app.registry.manifest import Entry, spec_as
from app.registry.spec import RefinerSpec

if TYPE_CHECKING:
    from app.networks.enhancer import Enhancer
    from app.networks.refiner import Refiner

log = logging.getLogger(__name__)

#: A window below this sees too little to be worth its name.
LEAST_WINDOW: Final = 32


class VolumeRefiner:
    """Run a refiner over volumes.

    Args:
        identity: its name and checksum.
        spec: its windows.
        network: float32 weights; becomes the runtime's own.
        runtime: device and precision; it is torch's whatever the first stage runs on.

    Attributes:
        targets: the sequences that it refines.
        window: sides of what it sees at once.
    """

    def __init__(self, identity: Identity, spec: RefinerSpec, network: Refiner | Enhancer, runtime: Runtime) -> None:
        self.identity, self.spec = identity, spec
        self._device = torch.device(runtime.device)
        network = network.eval().to(self._device, TORCH_TYPES[runtime.precision])
        self._network: Refiner | Enhancer = network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.window: Sides = spec.window
        self.targets: tuple[Modality, ...] = network.targets

    def refine(
        self,
        volume: VolumeArray,
        normalized: Mapping[Modality, VolumeArray],
        target: Modality,
        foreground: MaskArray,
        background: float,
    ) -> VolumeArray:
        """Correct the first stage's volume.

        Args:
            volume: normalized, float32, axes (left, posterior, superior); a voxel that is not finite is not looked at.
            normalized: the present sequences, float32, same shape.
            foreground: where the brain is; windows cover the box around it.
            background: normalized value of background voxels.

        Returns:
            Normalized, float32, same shape; `background` outside the foreground.

        Raises:
            CaseError: not even the smallest window fits into memory.
        """
        box = bounding_box(foreground)
        inside = foreground[box]
        first = np.where(inside & np.isfinite(volume[box]), volume[box], np.float32(background))
        members = members_of(normalized)
        inputs = np.stack([first, *(normalized[MODALITIES[i]][box] for i in members)])
        refined = self._slide(inputs, members, MODALITIES.index(target), inside, background)
        out = np.full(volume.shape, background, dtype=np.float32)
        out[box][inside] = refined[inside]
        return out

    def _slide(
        self, inputs: NDArray[np.float32], members: tuple[int, ...], target: int, inside: MaskArray, background: float
    ) -> VolumeArray:
        """Run the network over windows, which are smaller from then on once memory ran out."""

        def run(window: NDArray[np.float32]) -> NDArray[np.float32]:
            return self._run(window, members, target, background)

        while True:
            try:
                refined: VolumeArray = slide(inputs, run, 1, self.window, inside, background, self.spec.overlap)[0]
                return refined
            except MemoryError as error:
                self._halve(error)

    def _run(
        self, window: NDArray[np.float32], members: tuple[int, ...], target: int, background: float
    ) -> NDArray[np.float32]:
        """Run the network on a window: (1 + members) x sides in, 1 x sides out."""
        with memory_errors(self._device), torch.inference_mode():
            inputs = torch.from_numpy(window).to(self._device)[None]
            images = torch.full((1, len(MODALITIES), *window.shape[1:]), background, device=self._device)
            images[:, list(members)] = inputs[:, 1:]
            index = torch.full((1,), target, device=self._device)
            refined: NDArray[np.float32] = self._network(inputs[:, :1], images, index, members)[0].cpu().numpy()
            return refined

    def _halve(self, error: MemoryError) -> None:
        # A single voxel in the deepest layer could not be normalized.
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
    """Load a refiner for a first stage.

    Args:
        normalization: the first stage's; both must see the same z-scores.

    Raises:
        WeightsError: the weights are missing or damaged, or the normalisations differ.
    """
    if entry.spec.normalization != normalization:
        raise WeightsError(f"the refiner {entry.name!r} sees other scores than the model that it would refine.")
    return VolumeRefiner(entry.identity, spec_as(entry, RefinerSpec), load_refiner(entry), runtime)
