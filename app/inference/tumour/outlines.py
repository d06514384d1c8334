"""Tumours by UCG-SAMR: it translates exams to outlines, though it never saw a pair of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from app.core.constants import MODALITIES, Modality
from app.core.errors import CaseError, WeightsError
from app.core.types import VolumeArray
from app.inference.device import Runtime
from app.networks.cgsamr.unpaired import UcgSamr
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import BACKGROUND, Normalization, measure, normalize
from app.preprocessing.slices import Canvas, crop, paste, place_window
from app.registry.checkpoints import load_simulator
from app.registry.identity import Identity
from app.registry.manifest import Entry, spec_as
from app.registry.spec import CgSamrSpec

#: Slices at once.
_BATCH: Final = 8


@dataclass(frozen=True)
class OutlineModel:
    """A UCG-SAMR that finds the tumours of complete exams."""

    identity: Identity
    network: UcgSamr
    normalization: Normalization
    canvas: Canvas
    runtime: Runtime

    @classmethod
    def on(cls, entry: Entry, runtime: Runtime) -> OutlineModel:
        """Load it.

        Raises:
            WeightsError: the weights are damaged, or it is a simulator that does not segment.
        """
        spec, network = spec_as(entry, CgSamrSpec), load_simulator(entry)
        if not isinstance(network, UcgSamr):
            raise WeightsError(f"model {entry.name!r} makes exams and segments none; name a ucgsamr.")
        return cls(entry.identity, network.to(runtime.device), spec.normalization, spec.canvas, runtime)

    def labels(self, arrays: Mapping[Modality, VolumeArray]) -> NDArray[np.uint8]:
        """Label the voxels of a complete exam: uint8 L x P x S, 0 where no label has more than a half.

        Raises:
            CaseError: a sequence lacks.
        """
        if lacking := [m for m in MODALITIES if m not in arrays]:
            raise CaseError(f"model {self.identity.name!r} segments complete exams, and this one lacks {lacking[0]}.")
        brain = vote_foreground(arrays)
        window = place_window(brain, "axial", self.canvas)
        scales = {m: measure(arrays[m], m, self.normalization) for m in MODALITIES}
        stacks = [crop(normalize(arrays[m], scales[m], BACKGROUND), window, BACKGROUND) for m in MODALITIES]
        slices = torch.from_numpy(np.stack(stacks, axis=1)).clamp(-1, 1)
        with torch.inference_mode():
            found = [self.network.segment(part.to(self.runtime.device)).cpu() for part in torch.split(slices, _BATCH)]
        volume = paste(torch.cat(found).numpy().astype(np.float32), window, brain.shape, 0.0)
        return np.where(brain, volume, 0).astype(np.uint8)
