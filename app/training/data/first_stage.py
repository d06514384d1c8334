"""Volumes that a first stage makes of the subjects of a cache.

They are kept beside the subjects' own and cut into patches with them.

Each sequence of each subject is made once, from the other three, as `app.inference.pipeline.predict` gives it, by the
model or by its specialist: normalized, before anything is refined, stretched or cleared; background outside the brain.
The file is `<subject>-stage1-<8 digits>.npy`: of the model's sha256, or of those of the model and its specialists.
Where views are not the plain mean of all three, the name has them and their fusion. It is float16 (sequence, left,
posterior, superior) on the subject's box.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.core.atomic_io import save_bytes
from app.core.config import ModelOptions
from app.core.constants import MODALITIES, VIEWS, Modality
from app.core.errors import UsageError
from app.data.discovery import scan
from app.data.loading import load_complete
from app.data.nifti_reader import Volume
from app.inference.loading import choose_fusion, fusion_of, specialist_hashes
from app.inference.models import Model
from app.inference.pipeline import predict, prepare
from app.inference.slicewise.view_fusion import FusionOptions
from app.inference.synthesizer import Synthesizer
from app.preprocessing.foreground import bounding_box, vote_foreground
from app.preprocessing.normalization import BACKGROUND
from app.registry.lineage import read_lineage
from app.registry.manifest import Entry, read_manifest
from app.registry.spec import FirstStage, GeneratorSpec
from app.training.checkpoint import State
from app.training.data.cache import NORMALIZATION, CachedSubject, mapped
from app.training.distributed import Processes

log = logging.getLogger(__name__)


class StageOne:
    """The first stage of a refinement.

    Called with a subject, it gives the `extra_channels` of `PatchSampler`.

    Args:
        entry: a generator whose inputs are normalized as the cache is.
        device: `cpu`, `cuda` or `cuda:N`.

    Raises:
        UsageError: the model is no generator, sees other inputs, or does not make every sequence.
    """

    def __init__(self, entry: Entry, device: str) -> None:
        if not isinstance(entry.spec, GeneratorSpec) or entry.spec.normalization != NORMALIZATION:
            raise UsageError(
                f"model {entry.name!r} is no generator that sees scores as training does; name one with --stage-one."
            )
        if entry.spec.targets != MODALITIES:
            targets = ", ".join(entry.spec.targets)
            raise UsageError(
                f"model {entry.name!r} makes {targets} only; name one that makes all four with --stage-one."
            )
        self.entry, self._device = entry, device
        self._model: Model | None = None

    @property
    def model(self) -> Model:
        """The generator alone, ready to run.

        Raises:
            WeightsError: its weights are missing or damaged.
        """
        if self._model is None:
            opened = Synthesizer(self.entry.name, weights=self.entry.folder, device=self._device, refine=False)
            self._model = opened.model
        return self._model

    @property
    def described(self) -> FirstStage:
        """The description of it in a run's state and in a manifest."""
        specialists = self._specialists()
        return FirstStage(
            model=self.entry.name, sha256=self.entry.sha256, fusion=self.fusion, specialists=specialists or None
        )

    def _specialists(self) -> dict[Modality, str]:
        """The sha256 of each specialist, by the sequence that it makes."""
        return specialist_hashes(read_manifest(self.entry.folder), self.entry)

    def path_of(self, subject: CachedSubject) -> Path:
        """Give the file of its volumes of a subject."""
        how = "" if self.fusion == "-".join([*VIEWS, FusionOptions().name]) else f"-{self.fusion}"
        return subject.folder / f"{subject.name}-stage1-{self._digits}{how}.npy"

    @property
    def _digits(self) -> str:
        """Eight digits that change with any of the weights."""
        if not (specialists := self._specialists()):
            return self.entry.sha256[:8]
        text = " ".join([self.entry.sha256, *(f"{m}={specialists[m]}" for m in MODALITIES if m in specialists)])
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def fusion(self) -> str:
        """Its views and their fusion, on which a refiner learns as on the weights."""
        return fusion_of(self.entry, choose_fusion(self.entry, ModelOptions()))

    def check_fusion(self, before: FirstStage) -> None:
        """Refuse a run that learned on another fusion of the same views.

        Args:
            before: what the run's state says; one of before this was noted passes.

        Raises:
            UsageError: they are.
        """
        if (learned := before.fusion or self.fusion) != self.fusion:
            raise UsageError(
                f"the run refines views of {self.entry.name!r} joined as {learned!r}; the manifest says "
                f"{self.fusion!r} now. Put it back, or train anew."
            )

    def make(self, data: Path, subjects: Sequence[CachedSubject]) -> None:
        """Make the missing volumes, each subject's file when its four are done.

        Args:
            data: the folder that the cache was made of.

        Raises:
            CaseError: the network does not fit into memory.
            UsageError: a subject is gone from the folder.
        """
        lacking = {s.name: s for s in subjects if not self.path_of(s).exists()}
        if not lacking:
            return
        log.info("%s makes the four sequences of %d subjects, once for this cache.", self.entry.name, len(lacking))
        done: set[str] = set()
        for name, volumes in load_complete(c for c in scan(data).cases if c.subject in lacking):
            first_stage = self._volumes(volumes, lacking[name])
            buffer = io.BytesIO()
            np.save(buffer, first_stage)
            save_bytes(buffer.getvalue(), self.path_of(lacking[name]))
            done.add(name)
            log.info("%s: first stage made, %d of %d", name, len(done), len(lacking))
        if gone := sorted(set(lacking) - done):
            raise UsageError(f"{gone[0]} cannot be read from {data} any more; put it back, or give another --cache.")

    def __call__(self, subject: CachedSubject) -> NDArray[np.float16]:
        """Open a subject's volumes: float16 (4, left, posterior, superior), challenge order, memory-mapped."""
        volumes: NDArray[np.float16] = mapped(self.path_of(subject))
        return volumes

    def _volumes(self, volumes: Mapping[Modality, Volume], subject: CachedSubject) -> NDArray[np.float16]:
        # The cache's box, which that of three sequences need not be.
        box = bounding_box(vote_foreground({m: v.data for m, v in volumes.items()}))
        out = np.full((len(MODALITIES), *subject.brain.shape), BACKGROUND, dtype=np.float16)
        for index, target in enumerate(MODALITIES):
            model = self.model.model_for(target)
            prepared = prepare({m: v for m, v in volumes.items() if m != target}, model)
            result = predict(prepared, target, model).volume[box]
            out[index] = np.where(subject.brain, result, BACKGROUND)
        return out


def open_stage_one(
    entry: Entry | None, before: State | None, group: Processes, data: Path, subjects: Sequence[CachedSubject]
) -> StageOne:
    """Open the first stage of a run, with its volumes of all subjects.

    The first process makes them, the others wait.

    Args:
        before: the state that the run goes on from, if it does.

    Raises:
        UsageError: none is named, or another than the run began with; or as `StageOne`.
    """
    if entry is None:
        raise UsageError("the recipe trains a refiner; name the generator that it refines with --stage-one.")
    known = None if before is None else before.first_stage
    if known is not None and known.sha256 != entry.sha256:
        raise UsageError(f"the run refines what {known.model!r} made; --stage-one names another model.")
    stage_one = StageOne(entry, str(group.device))
    if known is not None:
        stage_one.check_fusion(known)
    with group.first_alone() as chosen:
        if chosen:
            record = read_lineage(entry.folder).trainings.get(entry.sha256)
            taught = set() if record is None else set(record.subjects)
            if both := sum(s.name in taught for s in subjects):
                log.warning("%s was trained on %d of these %d subjects and makes them better than others: the recipe's "
                            "[refinement] section makes them worse again; validate on --validation subjects.",
                            entry.name, both, len(subjects))  # fmt: skip
            stage_one.make(data, subjects)
    return stage_one
