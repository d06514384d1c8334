"""Training of the 3D tumour segmenter that measures synthesised exams; it never teaches a generator."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from app.data.cases import Case
from app.networks.architectures import SEGMENTER3D_WIDTHS, Segmenter3dConfig
from app.networks.unet3d import Segmenter3d
from app.preprocessing.normalization import BACKGROUND
from app.preprocessing.slices import MULTIPLE
from app.registry.checkpoints import load_segmenter3d
from app.registry.manifest import Entry
from app.registry.spec import Segmenter3dSpec
from app.training import validation
from app.training.config import LossRecipe, Recipe
from app.training.data.cache import CachedSubject
from app.training.data.patches import Patches, PatchSampler, PatchSource
from app.training.data.sections import Listed, PatchData, Section, check_rules
from app.training.data.splits import labelled_subjects
from app.training.data.variation.augmentation import vary_intensities, vary_patches
from app.training.losses import dice_loss
from app.training.placement import choose_volume_precision, placed3d
from app.training.promotion.request import ExportRequest, check_no_images
from app.training.promotion.writing import promote_scored
from app.training.tasks.base import Task, TrainingContext, Update, add_to


class Segmentation3dLosses(LossRecipe):
    """Weights of the losses.

    Attributes:
        segmentation: Dice of the answer.
        entropy: cross-entropy: it moves a network whose overlap is nothing yet.
    """

    segmentation: float = 1.0
    entropy: float = 1.0


class Segmenter3dShape(Section):
    """Shape of the 3D segmenter.

    Attributes:
        widths: channels per level, the finest first.
    """

    widths: Listed[tuple[int, ...]] = SEGMENTER3D_WIDTHS

    @model_validator(mode="after")
    def _check_widths(self) -> Self:
        levels, deepest = len(self.widths), MULTIPLE.bit_length()
        check_rules({f"network.widths must be 2 to {deepest} numbers above 0": 2 <= levels <= deepest
                     and min(self.widths) > 0})  # fmt: skip
        return self


class Segmentation3dRecipe(Recipe):
    """One training of the 3D segmenter.

    On a processor, patches less than 48 deep are computed in float32.
    """

    task: Literal["segmentation3d"] = "segmentation3d"
    data: PatchData = PatchData()
    network: Segmenter3dShape = Segmenter3dShape()
    losses: Segmentation3dLosses = Segmentation3dLosses()


class Segmentation3dTask(Task[Segmentation3dRecipe]):
    """A 3D segmenter, taught on the four real sequences as nnU-Net is."""

    recipe_type = Segmentation3dRecipe
    kind = "segmenter3d"

    average: Segmenter3d

    def __init__(self, recipe: Segmentation3dRecipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        self.segmenter = placed3d(Segmenter3d(recipe.network.widths), device)
        self.average = copy.deepcopy(self.segmenter).requires_grad_(False).eval()

    @classmethod
    def usable(cls, subjects: list[CachedSubject]) -> list[CachedSubject]:
        """Choose the subjects with a segmentation."""
        return labelled_subjects(subjects)

    @classmethod
    def read_weights(cls, entry: Entry) -> nn.Module:
        """Read a 3D segmenter."""
        return load_segmenter3d(entry)

    def new_source(self, context: TrainingContext[Segmentation3dRecipe]) -> PatchSource:
        """Build what batches of patches come from."""
        recipe = self.recipe
        sampler = PatchSampler(context.subjects, recipe.data, BACKGROUND, seed=recipe.seed, rank=context.group.rank)
        return PatchSource(sampler, recipe.schedule.batch_size, context.prefetch)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The network that learns."""
        return {"segmenter": self.segmenter}

    @property
    def precision(self) -> torch.dtype:
        """Precision in which the network trains and is validated."""
        return choose_volume_precision(self.recipe.schedule.precision, self.device, self.recipe.data.patch[0])

    def step(self, source: PatchSource, step: int, pieces: int, update: Update) -> dict[str, Tensor]:
        """Learn from one batch of patches."""
        augmentation, weights = self.recipe.augmentation, self.recipe.losses
        sample, random = source.at(step)
        patches = vary_patches(sample.to(self.device), augmentation, random, BACKGROUND)
        seen = vary_intensities(patches, augmentation, random, BACKGROUND)
        self.segmenter.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for part, shown in zip(patches.pieces(pieces), seen.chunk(pieces), strict=True):
            share = len(part) / len(patches)
            with self.mixed_precision():
                levels = self.segmenter.deep(shown)
            losses = deep_losses(levels, part)
            loss = weights.segmentation * losses["dice"] + weights.entropy * losses["entropy"]
            (share * loss).backward()  # type: ignore[no-untyped-call]
            add_to(totals, losses, share)
        update("segmenter")
        return totals

    @torch.no_grad()
    def pictures(self, sampler: PatchSampler) -> list[list[np.ndarray]]:
        """Draw one slice: its sequences, the truth, and the averaged network's answer."""
        patches = sampler.draw(np.random.default_rng([self.recipe.seed, 2**32]), 1).to(self.device)
        middle = patches.images.shape[-1] // 2
        answer = self.average(patches.images).argmax(dim=1)
        real = patches.images[0, ..., middle].cpu().numpy()
        labels = [v[0, ..., middle].float().cpu().numpy() / 3 for v in (patches.labels, answer)]
        return [[*real[:2]], [*real[2:]], labels]

    def validate(self, cases: Sequence[Case], masks: Mapping[str, Path]) -> dict[str, float]:
        """Score the averaged network's answers."""
        patch, scheme = self.recipe.data.patch, self.recipe.normalization.build()
        rows = validation.score_segmenter3d(self.average, cases, masks, patch, self.device, self.precision, scheme)
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
        recipe = request.recipe_of(Segmentation3dRecipe)
        network = Segmenter3d(recipe.network.widths)
        request.state.load_into(network)
        rows, patch, scheme = None, recipe.data.patch, recipe.normalization.build()
        if request.cases:
            device = request.torch_device
            precision = choose_volume_precision(recipe.schedule.precision, device, patch[0])
            cases, masks = request.cases, request.masks
            rows = validation.score_segmenter3d(network.to(device), cases, masks, patch, device, precision, scheme)
        shape = Segmenter3dConfig(network.widths)
        spec = Segmenter3dSpec(architecture=shape, normalization=scheme, window=patch)
        return promote_scored(request, spec, rows)


def deep_losses(levels: list[Tensor], patches: Patches) -> dict[str, Tensor]:
    """Compute Dice and cross-entropy of all levels.

    Each level counts half of the finer one; together they count 1.

    Args:
        levels: logits at full resolution, at half ....
    """
    shares = [0.5**level / sum(0.5**k for k in range(len(levels))) for level in range(len(levels))]
    truths = [patches.labels[:, :: 2**level, :: 2**level, :: 2**level] for level in range(len(levels))]
    each = list(zip(shares, levels, truths, strict=True))
    return {
        "dice": torch.stack([share * dice_loss(logits, truth) for share, logits, truth in each]).sum(),
        "entropy": torch.stack([share * F.cross_entropy(logits.float(), truth) for share, logits, truth in each]).sum(),
    }


TASK = Segmentation3dTask
