"""A TISS-Net that is ready to run: the missing sequence and the tumour of a whole exam."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.core.constants import Modality
from app.core.errors import CaseError
from app.core.types import MaskArray, VolumeArray
from app.data.labels import REGIONS
from app.inference.backends import memory_errors
from app.inference.device import Runtime
from app.inference.sliding_window import slide
from app.networks.tissnet.model import TissNet
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import measure
from app.registry.checkpoints import load_tissnet
from app.registry.manifest import Entry, spec_as
from app.registry.spec import TissNetSpec

#: Normalized value of the background.
DARK: Final = -1.0
#: Label of each region where no smaller one is found, from the largest region to the smallest.
_LABELS: Final = {"WT": 2, "TC": 1, "ET": 3}


@dataclass(frozen=True)
class CompletedSegmentation:
    """Hold what one pass over an exam gives.

    Attributes:
        labels: uint8: 0 none, 1 necrotic core, 2 oedema, 3 enhancing tumour. A network of one region says 2 alone.
        synthesis: the target sequence, float32 in [-1, 1], -1 outside the brain; None for a complete exam.
        coarse: labels of the generator's own segmentation.
    """

    labels: NDArray[np.uint8]
    synthesis: VolumeArray | None
    coarse: NDArray[np.uint8]


@dataclass(frozen=True)
class CompletingSegmenter:
    """Complete and segment exams by one TISS-Net.

    Attributes:
        network: on its device, in eval mode.
        precision: `torch.bfloat16` or `torch.float32`; in bfloat16 by autocast.
        overlap: share of a window that the next one covers again.
    """

    network: TissNet
    spec: TissNetSpec
    device: torch.device
    precision: torch.dtype = torch.float32
    overlap: float = 0.5

    @classmethod
    def on(cls, entry: Entry, runtime: Runtime) -> CompletingSegmenter:
        """Load a TISS-Net for a runtime that is settled.

        Raises:
            WeightsError: the entry is of another kind, or its file is missing or damaged.
        """
        device = torch.device(runtime.device)
        precision = torch.bfloat16 if runtime.precision == "bf16" else torch.float32
        return cls(load_tissnet(entry).to(device), spec_as(entry, TissNetSpec), device, precision)

    def run(self, volumes: Mapping[Modality, VolumeArray], target: Modality | None) -> CompletedSegmentation:
        """Make the target sequence and find the tumour.

        Args:
            volumes: the source sequences in the file's units, float32, background 0, one shape; the target is not
                looked at.
            target: the sequence to make; None for an exam that lacks nothing.

        Raises:
            CaseError: the model does not make the target, a source lacks, the sequences show no common brain, or a
                window does not fit into memory.
        """
        case = self._case_of(target)
        needed = [m for m in self.spec.sources if m != target]
        if absent := [m for m in needed if m not in volumes]:
            raise CaseError(f"the model needs {', '.join(needed)}; {', '.join(absent)} lacks.")
        sources = {m: volumes[m] for m in needed}
        brain = vote_foreground(sources)
        if not brain.any():
            raise CaseError("the sequences show no common brain.")
        dark = np.full(brain.shape, DARK, dtype=np.float32)
        ranges = {m: to_range(v, measure(v, m, self.spec.normalization).clip) for m, v in sources.items()}
        regions = self.spec.architecture.regions
        stacked = np.stack([ranges.get(m, dark) for m in self.spec.sources])
        maps = self._slide(stacked, brain, case, self._all_maps, 1 + 2 * regions)
        return CompletedSegmentation(
            labels=to_labels(maps[1 + regions :], brain),
            synthesis=None if target is None else np.where(brain, maps[0], np.float32(DARK)),
            coarse=to_labels(maps[1 : 1 + regions], brain),
        )

    def _all_maps(self, window: Tensor, number: Tensor) -> Tensor:
        output = self.network(window, number)
        return torch.cat([output.synthesis, output.coarse, output.fine], dim=1)

    def perceive(self, volume: VolumeArray, sequence: Modality) -> NDArray[np.uint8]:
        """Find the tumour in one sequence alone, by the perceptibility network S_p.

        Args:
            volume: in the file's units, float32, background 0.
            sequence: what it shows, one of the targets.

        Returns:
            Labels as of `CompletedSegmentation`.

        Raises:
            CaseError: the model does not make that sequence, or the volume is empty.
        """
        case, brain = self._case_of(sequence), volume > 0
        if not brain.any():
            raise CaseError("the sequence is empty.")
        ranged = to_range(volume, measure(volume, sequence, self.spec.normalization).clip)

        def look(window: Tensor, number: Tensor) -> Tensor:
            answer: Tensor = self.network.perceptibility(window, number)
            return answer

        return to_labels(self._slide(ranged[None], brain, case, look, self.spec.architecture.regions), brain)

    def _case_of(self, target: Modality | None) -> int:
        try:
            return self.spec.case_of(target)
        except ValueError as error:
            raise CaseError(f"{error}.") from None

    def _slide(
        self,
        stacked: NDArray[np.float32],
        brain: MaskArray,
        case: int,
        network: Callable[[Tensor, Tensor], Tensor],
        channels: int,
    ) -> NDArray[np.float32]:
        number = torch.tensor([case], device=self.device)

        def run(window: NDArray[np.float32]) -> NDArray[np.float32]:
            low = self.precision == torch.bfloat16
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=low):
                joined = network(torch.from_numpy(window)[None].to(self.device), number)
            maps: NDArray[np.float32] = joined[0].float().cpu().numpy()
            return maps

        try:
            with memory_errors(self.device):
                return slide(stacked, run, channels, self.spec.window, brain, DARK, self.overlap)
        except MemoryError as error:
            raise CaseError(f"the model does not fit into the device's memory ({error}); use --device cpu.") from None


def to_range(volume: VolumeArray, clip: float) -> VolumeArray:
    """Scale intensities from 0 to `clip` to [-1, 1]; what lies above is cut."""
    return np.asarray(np.clip(volume / np.float32(clip), 0, 1) * 2 - 1, dtype=np.float32)


def to_labels(regions: NDArray[np.float32], brain: MaskArray) -> NDArray[np.uint8]:
    """Turn probabilities of nested regions into labels.

    Args:
        regions: K x X x Y x Z in the order of `app.data.labels.REGIONS`; K = 1 is the whole tumour.
        brain: nothing is found outside.
    """
    names = list(REGIONS) if len(regions) == len(REGIONS) else ["WT"]
    labels = np.zeros(brain.shape, dtype=np.uint8)
    inside = brain
    for name, label in _LABELS.items():
        if name not in names:
            continue
        # A smaller region lies in the larger one.
        inside = inside & (regions[names.index(name)] > 0.5)
        labels[inside] = label
    return labels
