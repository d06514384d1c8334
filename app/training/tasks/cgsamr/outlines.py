"""Batches of slices with their outlines and the anatomical prior, and the atlas that it is cut from."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.core.atomic_io import save_bytes
from app.core.constants import MODALITIES, View
from app.core.errors import UsageError
from app.data.discovery import scan
from app.inference.simulation.atlas import Atlas, AtlasBuilder, Frame, frame_of, plain_frame, read_atlas
from app.inference.simulation.own_tissue import own_tissue
from app.networks.architectures import CgSamrConfig, CgSamrPrior
from app.networks.cgsamr.discriminators import region_masks
from app.networks.cgsamr.inputs import network_inputs
from app.preprocessing.normalization import BACKGROUND
from app.training.data.cache import CachedSubject, mapped
from app.training.data.sections import SliceAugmentation, SliceData
from app.training.data.slices import SampledStep, Sampler
from app.training.data.variation.augmentation import vary_geometry
from app.training.tasks.cgsamr.recipe import OutlineData

log = logging.getLogger(__name__)

#: Every so many slices the tissue of a brain is withheld.
_WITHOUT_OWN: Final = 10


@dataclass(frozen=True)
class Slices:
    """Hold slices as the networks see them.

    Attributes:
        inputs: B x inputs x H x W (`app.networks.cgsamr.inputs`).
        exam: the real sequences in [-1, 1], B x 4 x H x W.
        labels: int64 B x H x W.
        masks: background, normal brain and lesion, B x 3 x H x W.
    """

    inputs: Tensor
    exam: Tensor
    labels: Tensor
    masks: Tensor

    def __len__(self) -> int:
        return len(self.exam)

    def pieces(self, count: int) -> list[Slices]:
        """Cut into at most so many parts."""
        parts = (t.chunk(count) for t in (self.inputs, self.exam, self.labels, self.masks))
        return [Slices(*part) for part in zip(*parts, strict=True)]


class OutlineSampler(Sampler):
    """Draw slices with the anatomical prior as further channels, in [-1, 1].

    Args:
        subjects, recipe, seed, rank: as `Sampler`.
        atlas: what the prior is cut from.
        kind: of the prior.
    """

    def __init__(
        self,
        subjects: Sequence[CachedSubject],
        recipe: SliceData,
        atlas: Atlas,
        kind: CgSamrPrior,
        *,
        seed: int = 0,
        rank: int = 0,
    ) -> None:
        super().__init__(subjects, recipe, BACKGROUND, seed=seed, rank=rank)
        self._atlas, self._kind = atlas, kind
        self._sees_tissue = kind in {"subject", "tissue"}
        for subject in subjects if self._sees_tissue else ():
            _find_tissue(subject)

    def _images(self, subject: CachedSubject, view: View, index: int) -> NDArray[np.float32]:
        # So that it can do without a brain, too.
        is_told = self._sees_tissue and index % _WITHOUT_OWN > 0
        own = mapped(_tissue_path(subject)) if is_told else None
        prior = self._atlas.prior(self._kind, subject.brain.shape, index, own)
        # What moves in from outside the canvas is -1 in every channel.
        prior = 2 * prior - 1 if self._kind == "tissue" else prior
        return np.concatenate([super()._images(subject, view, index), prior])


def _tissue_path(subject: CachedSubject) -> Path:
    return subject.folder / f"{subject.name}-tissue.npy"


def _find_tissue(subject: CachedSubject) -> None:
    """Find the tissue of a subject's own brain, unless the cache has it from these images."""
    path, images = _tissue_path(subject), subject.folder / f"{subject.name}.npy"
    if path.exists() and path.stat().st_mtime >= images.stat().st_mtime:
        return
    log.info("The tissue of %s is found.", subject.name)
    tissue = own_tissue(np.asarray(subject.normalized), np.asarray(subject.brain), subject.labels)
    buffer = io.BytesIO()
    np.save(buffer, tissue)
    save_bytes(buffer.getvalue(), path)


def slices_of(sample: SampledStep, augmentation: SliceAugmentation, config: CgSamrConfig, device: Any) -> Slices:
    """Vary the geometry of a batch from an `OutlineSampler`, and part it into what is given and what is made."""
    batch = vary_geometry(sample.batch.to(device), augmentation, sample.own, BACKGROUND)
    exam, prior = batch.images[:, : len(MODALITIES)], batch.images[:, len(MODALITIES) :]
    anatomy = (prior + 1) / 2 if config.prior == "tissue" else prior
    lesion = (batch.labels > 0)[:, None]
    return Slices(
        network_inputs(batch.brain, batch.labels, anatomy, config),
        exam.clamp(-1, 1),
        batch.labels * (batch.brain[:, 0] > 0),
        region_masks(batch.brain, lesion & (batch.brain > 0)),
    )


def training_atlas(choice: OutlineData, subjects: Sequence[CachedSubject], data: Path) -> Atlas:
    """Read the atlas of a recipe, or make one of the training subjects, once for a cache.

    Args:
        choice: which file, or none to make one, and on which voxels.
        subjects: those that a run trains on, with segmentations.
        data: folder that they come from, for the first one's geometry.

    Raises:
        UsageError: the file is no atlas, or the cache is of an older version.
    """
    if choice.atlas:
        return read_atlas(Path(choice.atlas)).on_voxels(choice.atlas_voxel)
    names = hashlib.sha256("\n".join(s.name for s in subjects).encode()).hexdigest()[:12]
    path = subjects[0].folder / f"atlas-{names}.safetensors"
    if not path.exists():
        log.info("The atlas of %d subjects is made.", len(subjects))
        save_bytes(_averaged(subjects, data).to_bytes(), path)
    return read_atlas(path).on_voxels(choice.atlas_voxel)


def _averaged(subjects: Sequence[CachedSubject], data: Path) -> Atlas:
    builder = AtlasBuilder()
    first = _frame(subjects[0], data)
    for subject in subjects:
        labels = np.asarray(subject.labels)
        brightness = [subject.intensities[m].clip for m in MODALITIES]
        builder.add(np.asarray(subject.normalized), np.asarray(subject.brain), labels, brightness, first)
    return builder.build()


def _frame(subject: CachedSubject, data: Path) -> Frame:
    if subject.start is None or subject.shape is None:
        raise UsageError(f"the cache {subject.folder} is of an older version; delete it, or give another --cache.")
    grids = [grid for c in scan(data).cases if c.subject == subject.name for grid in c.grids.values()]
    if not grids:
        return plain_frame(subject.shape, subject.start)
    return frame_of(subject.shape, grids[0].lps_affine, subject.start)


class OutlineSource:
    """Batches of outlines: of the same slices as the exams, or of others.

    Args:
        paired: sampler of the exams.
        outlines: sampler of the outlines; None where both come from one slice.
        size: slices of a batch.
        max_shift: largest translation in pixels.
    """

    def __init__(self, paired: OutlineSampler, outlines: OutlineSampler | None, size: int, max_shift: int) -> None:
        self.sampler, self._outlines, self._size, self._shift = paired, outlines, size, max_shift

    def at(self, step: int) -> SampledStep:
        """Give the exams of a step, with their outlines."""
        return self.sampler.at(step, self._size, self._shift)

    def outlines_at(self, step: int) -> SampledStep:
        """Give outlines that do not belong to the exams."""
        return (self._outlines or self.sampler).at(step, self._size, self._shift)


def copy_buffers(average: torch.nn.Module, network: torch.nn.Module) -> None:
    """Give the averaged network the running means of the one that learns, which are averages themselves."""
    for mean, value in zip(average.buffers(), network.buffers(), strict=True):
        mean.copy_(value)
