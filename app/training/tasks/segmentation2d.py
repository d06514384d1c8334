"""Training of the light 2D segmenter, which later, frozen, teaches generators where tumours are."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.data.cases import Case
from app.networks.architectures import Segmenter2dConfig
from app.networks.unet import Segmenter2d
from app.preprocessing.normalization import BACKGROUND
from app.registry.checkpoints import load_segmenter2d
from app.registry.manifest import Entry
from app.registry.spec import Segmenter2dSpec
from app.training import validation
from app.training.config import LossRecipe, Recipe, ScheduleRecipe
from app.training.data.cache import CachedSubject
from app.training.data.sections import SliceAugmentation, SliceData
from app.training.data.slices import Batch, Sampler, Source
from app.training.data.splits import labelled_subjects
from app.training.data.variation.augmentation import vary_geometry, vary_intensities
from app.training.losses import TVERSKY_LOSSES, TverskyForm
from app.training.placement import placed
from app.training.promotion.request import ExportRequest, check_no_images
from app.training.promotion.writing import promote_scored
from app.training.tasks.base import Task, TrainingContext, Update, add_to


class Segmentation2dLosses(LossRecipe):
    """Weights of the losses.

    Attributes:
        segmentation: focal Tversky of the answer; `tversky_form` says whether the mean over the `tumour` classes, or
            the `published` sum over all four (`app.training.losses`).
        entropy: cross-entropy in the brain: it moves a network whose overlap is nothing yet.
    """

    segmentation: float = 1.0
    tversky_form: TverskyForm = "tumour"
    entropy: float = 1.0


class Segmentation2dRecipe(Recipe):
    """One training of the 2D segmenter."""

    task: Literal["segmentation2d"] = "segmentation2d"
    data: SliceData = SliceData()
    augmentation: SliceAugmentation = SliceAugmentation()
    losses: Segmentation2dLosses = Segmentation2dLosses()
    schedule: ScheduleRecipe


class Segmentation2dTask(Task[Segmentation2dRecipe]):
    """A segmenter, taught on the four real sequences."""

    recipe_type = Segmentation2dRecipe
    kind = "segmenter2d"

    average: Segmenter2d

    def __init__(self, recipe: Segmentation2dRecipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        self.segmenter = placed(Segmenter2d(), device)
        self.average = copy.deepcopy(self.segmenter).requires_grad_(False).eval()

    @classmethod
    def usable(cls, subjects: list[CachedSubject]) -> list[CachedSubject]:
        """Choose the subjects with a segmentation."""
        return labelled_subjects(subjects)

    @classmethod
    def read_weights(cls, entry: Entry) -> nn.Module:
        """Read a 2D segmenter."""
        return load_segmenter2d(entry)

    def new_source(self, context: TrainingContext[Segmentation2dRecipe]) -> Source:
        """Build what batches of slices come from."""
        recipe = self.recipe
        sampler = Sampler(context.subjects, recipe.data, BACKGROUND, seed=recipe.seed, rank=context.group.rank)
        return Source(sampler, recipe.schedule.batch_size, recipe.augmentation.shift, context.prefetch)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The network that learns."""
        return {"segmenter": self.segmenter}

    def step(self, source: Source, step: int, pieces: int, update: Update) -> dict[str, Tensor]:
        """Learn from one batch of slices."""
        augmentation, weights = self.recipe.augmentation, self.recipe.losses
        sample = source.at(step)
        batch = vary_geometry(sample.batch.to(self.device), augmentation, sample.own, BACKGROUND)
        seen = vary_intensities(batch, augmentation, sample.own, BACKGROUND)
        self.segmenter.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for part, shown in zip(batch.pieces(pieces), seen.chunk(pieces), strict=True):
            share = len(part) / len(batch)
            with self.mixed_precision():
                logits = self.segmenter(shown, part.views, part.types)
            tversky = TVERSKY_LOSSES[weights.tversky_form](logits, part.labels)
            entropy = _entropy(logits.float(), part)
            loss = weights.segmentation * tversky + weights.entropy * entropy
            (share * loss).backward()  # type: ignore[no-untyped-call]
            add_to(totals, {"tversky": tversky, "entropy": entropy}, share)
        update("segmenter")
        return totals

    @torch.no_grad()
    def pictures(self, sampler: Sampler) -> list[list[np.ndarray]]:
        """Draw one slice: its sequences, the truth, and the averaged network's answer."""
        draw = np.random.default_rng([self.recipe.seed, 2**32])
        batch = sampler.draw(draw, draw, 1).to(self.device)
        real = batch.images[0].cpu().numpy()
        answer = self.average(batch.images, batch.views, batch.types).argmax(dim=1)
        return [[*real[:2]], [*real[2:]], [v[0].float().cpu().numpy() / 3 for v in (batch.labels, answer)]]

    def validate(self, cases: Sequence[Case], masks: Mapping[str, Path]) -> dict[str, float]:
        """Score the averaged network's answers."""
        network, scheme = copy.deepcopy(self.average), self.recipe.normalization.build()
        rows = validation.score_segmenter2d(network, cases, masks, self.recipe.data, self.device, scheme)
        return validation.means(rows)

    def selection_score(self, scores: Mapping[str, float]) -> float:
        """Give the Dice of the whole tumour and of its core."""
        return scores["dice_TC"] + scores["dice_WT"]

    @classmethod
    def check_export(cls, request: ExportRequest) -> None:
        """Check that nothing is asked for that is for models that make images."""
        super().check_export(request)
        check_no_images(request)

    @classmethod
    def export(cls, request: ExportRequest) -> Entry:
        """Write the segmenter, unless it finds less than the one of its name."""
        recipe, network = request.recipe_of(Segmentation2dRecipe), Segmenter2d()
        data, scheme = recipe.data, recipe.normalization.build()
        request.state.load_into(network)
        rows = None
        if request.cases:
            device = request.torch_device
            rows = validation.score_segmenter2d(network.to(device), request.cases, request.masks, data, device, scheme)
        shape = Segmenter2dConfig(network.widths)
        spec = Segmenter2dSpec(architecture=shape, normalization=scheme, canvas=data.canvas)
        return promote_scored(request, spec, rows)


def _entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy over brain pixels: it moves the network while the overlap is still nearly nothing."""
    values = F.cross_entropy(logits, batch.labels, reduction="none")
    brain = batch.brain[:, 0]
    return (values * brain).sum() / brain.sum().clamp(min=1)


TASK = Segmentation2dTask
