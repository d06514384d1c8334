"""A TISS-Net that is ready to run: the missing sequence and the tumour of a whole exam."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from app.core.constants import Modality
from app.core.errors import CaseError
from app.core.types import MaskArray, VolumeArray
from app.data.labels import REGIONS
from app.inference.backends import memory_errors
from app.inference.sliding_window import slide
from app.networks.tissnet.model import TissNet
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import measure
from app.registry.spec import TissNetSpec

#: Share of a window that the next one covers again.
OVERLAP: Final = 0.5
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
    """

    network: TissNet
    spec: TissNetSpec
    device: torch.device
    precision: torch.dtype = torch.float32

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
        try:
            case = self.spec.case_of(target)
        except ValueError as error:
            raise CaseError(f"{error}.") from None
        needed = [m for m in self.spec.sources if m != target]
        if absent := [m for m in needed if m not in volumes]:
            raise CaseError(f"the model needs {', '.join(needed)}; {', '.join(absent)} lacks.")
        sources = {m: volumes[m] for m in needed}
        brain = vote_foreground(sources)
        if not brain.any():
            raise CaseError("the sequences show no common brain.")
        dark = np.full(brain.shape, DARK, dtype=np.float32)
        ranges = {m: to_range(v, measure(v, m, self.spec.normalization).clip) for m, v in sources.items()}
        maps = self._slide(np.stack([ranges.get(m, dark) for m in self.spec.sources]), brain, case)
        regions = self.spec.architecture.regions
        return CompletedSegmentation(
            labels=to_labels(maps[1 + regions :], brain),
            synthesis=None if target is None else np.where(brain, maps[0], np.float32(DARK)),
            coarse=to_labels(maps[1 : 1 + regions], brain),
        )

    def _slide(self, stacked: NDArray[np.float32], brain: MaskArray, case: int) -> NDArray[np.float32]:
        number = torch.tensor([case], device=self.device)

        def run(window: NDArray[np.float32]) -> NDArray[np.float32]:
            low = self.precision == torch.bfloat16
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=low):
                output = self.network(torch.from_numpy(window)[None].to(self.device), number)
            joined = torch.cat([output.synthesis, output.coarse, output.fine], dim=1)
            maps: NDArray[np.float32] = joined[0].float().cpu().numpy()
            return maps

        try:
            with memory_errors(self.device):
                channels = 1 + 2 * self.spec.architecture.regions
                return slide(stacked, run, channels, self.spec.window, brain, DARK, OVERLAP)
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
