"""Training of the 3D refiner on patches of what a first stage made."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from app.core.constants import MODALITIES, VIEWS
from app.networks.architectures import REFINER_PRESETS, RefinerConfig
from app.networks.refiner import Refiner
from app.networks.unet import Segmenter2d
from app.training import losses as L
from app.training.checkpoint import Memoryless
from app.training.config import Recipe, RefinementRecipe
from app.training.data.augmentation import vary_intensities, vary_patches
from app.training.data.patches import Patches, PatchSampler, PatchSource
from app.training.tasks.synthesis import BACKGROUND, Update, add_to, masked, mixed_precision, placed

#: Axial slices of each patch that the segmenter sees: its cost is theirs, and neighbours say much the same.
DICE_SLICES = 8
#: Nodes per side of the smooth error that a patch of the first stage is given.
_DRIFT_NODES = 4
_BLUR_TAPS = 5


def refiner_config(recipe: Recipe) -> RefinerConfig:
    """The refiner's shape that a recipe asks for."""
    return RefinerConfig(REFINER_PRESETS[recipe.refinement.width], recipe.refinement.shared_encoder)


@dataclass(frozen=True)
class _Job:
    """The sequence that is refined, and those that are present."""

    target: int
    members: tuple[int, ...]


class RefinementTask(Memoryless):
    """A refiner, and the frozen 2D segmenter if it teaches: never the judge, for a judge that also taught is no judge.

    Attributes:
        average: running mean of the refiner's weights; what is validated and exported.
    """

    def __init__(self, recipe: Recipe, device: torch.device, segmenter: Segmenter2d | None = None) -> None:
        self.recipe, self.device = recipe, device
        refiner = Refiner(refiner_config(recipe)).to(device)
        self.refiner: Refiner = refiner.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.refiner).requires_grad_(False).eval()
        self.segmenter = None if segmenter is None else placed(segmenter, device)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What learns."""
        return {"refiner": self.refiner}

    def step(self, source: PatchSource, step: int, pieces: int, update: Update) -> dict[str, Tensor]:
        """One batch, one update; arguments and result as `SynthesisTask.step`."""
        recipe = self.recipe
        patches, own = source.at(step)
        patches = vary_patches(patches.to(self.device), recipe.augmentation, own, BACKGROUND)
        seen = vary_intensities(patches, recipe.augmentation, own, BACKGROUND)
        stage = degrade(patches.beside, patches.brain, recipe.refinement, own)
        # Shared by all processes, so that each step refines the same sequences everywhere.
        jobs = _jobs(np.random.default_rng([recipe.seed, step]), recipe)
        self.refiner.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        parts = zip(patches.pieces(pieces), seen.chunk(pieces), stage.chunk(pieces), strict=True)
        for part, shown, made in parts:
            share = len(part) / len(patches)
            for job in jobs:
                found = self._losses_of(part, shown, made, job, first_slice=step)
                weighted = torch.stack([getattr(recipe.losses, name) * value for name, value in found.items()]).sum()
                # One backward pass per sequence: the gradients add up while memory holds one graph only.
                (share * weighted).backward()  # type: ignore[no-untyped-call]
                add_to(totals, found, share / len(jobs))
        update("refiner")
        return totals

    def _losses_of(self, part: Patches, shown: Tensor, made: Tensor, job: _Job, first_slice: int) -> dict[str, Tensor]:
        weights, target = self.recipe.losses, slice(job.target, job.target + 1)
        truth = part.images[:, target]
        index = torch.full((len(part),), job.target, device=self.device)
        with mixed_precision(self.recipe, self.device):
            refined = self.refiner(made[:, target], shown, index, job.members)
        found: dict[str, Tensor] = {}
        if weights.l1 > 0:
            found["l1"] = L.l1_loss(refined, truth, part.brain)
        if weights.ssim > 0:
            tumour = (part.labels[:, None] > 0).float() if weights.ssim_tissue == "dual" else None
            found["ssim"] = L.ssim_loss(refined, truth, part.brain, part.scale[:, job.target], tumour)
        if self.segmenter is not None and weights.dice > 0 and part.labelled.any():
            found["dice"] = self._dice(masked(refined, part.brain), part, job.target, first_slice)
        return found

    def _dice(self, refined: Tensor, part: Patches, target: int, first_slice: int) -> Tensor:
        """How far from the truth the segmenter's answer is, with the refined sequence among three real ones."""
        assert self.segmenter is not None
        images = torch.cat([part.images[:, :target], refined, part.images[:, target + 1 :]], dim=1)[part.labelled]
        depth = images.shape[-1]
        stride = max(1, depth // DICE_SLICES)
        chosen = torch.arange(first_slice % stride, depth, stride, device=images.device)
        # Axial slices are stacked along the last axis.
        slices = images[..., chosen].movedim(-1, 1).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        view = torch.full((len(slices),), VIEWS.index("axial"), device=images.device)
        with mixed_precision(self.recipe, self.device):
            logits = self.segmenter(slices, view, torch.full_like(view, -1))
        return L.dice_loss(logits, part.labels[part.labelled][..., chosen].movedim(-1, 1).flatten(0, 1))

    @torch.no_grad()
    def pictures(self, sampler: PatchSampler) -> list[list[NDArray[np.float32]]]:
        """Truth, first stage and refined, the middle axial slice of one patch, every sequence in turn."""
        patches = sampler.draw(np.random.default_rng([self.recipe.seed, 2**32]), 1).to(self.device)
        rows = []
        for target in range(len(MODALITIES)):
            members = tuple(i for i in range(len(MODALITIES)) if i != target)
            made = patches.beside[:, target : target + 1]
            index = torch.full((1,), target, device=self.device)
            refined = masked(self.average(made, patches.images, index, members), patches.brain)
            volumes = (patches.images[:, target : target + 1], made, refined)
            rows.append([v[0, 0, :, :, v.shape[-1] // 2].cpu().numpy() for v in volumes])
        return rows


def degrade(stage: Tensor, brain: Tensor, recipe: RefinementRecipe, random: np.random.Generator) -> Tensor:
    """First-stage patches as they would be of subjects that the first stage has not seen; the same shape, masked.

    Args:
        stage: float32 B x C x X x Y x Z scores.
        brain: B x 1 x X x Y x Z, 1 in the brain.
    """
    count, ones = stage.shape[:2], [1] * 3
    blurred, axes = random.random(len(stage)) < recipe.blur, random.integers(0, 3, len(stage))
    shares = random.random(len(stage))
    scale = 1 + random.uniform(-recipe.contrast, recipe.contrast, count)
    nodes = random.uniform(-recipe.drift, recipe.drift, (*count, *[_DRIFT_NODES] * 3))
    grain, seed = random.uniform(0, recipe.noise, count), int(random.integers(2**31))

    def tensor(values: NDArray[np.float64]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(stage.device)

    out = stage
    if blurred.any():
        smooth = torch.stack([_box_blur(s, b, int(axis)) for s, b, axis in zip(stage, brain, axes, strict=True)])
        share = tensor(shares * blurred).reshape(-1, 1, *ones)
        out = out + share * (smooth - out)
    out = out * tensor(scale).reshape(*count, *ones)
    if recipe.drift > 0:
        out = out + F.interpolate(tensor(nodes), size=stage.shape[2:], mode="trilinear")
    if recipe.noise > 0:
        generator = torch.Generator(stage.device).manual_seed(seed)
        noise = torch.randn(stage.shape, generator=generator, device=stage.device)
        out = out + tensor(grain).reshape(*count, *ones) * noise
    return masked(out, brain)


def _box_blur(volumes: Tensor, brain: Tensor, axis: int) -> Tensor:
    """Mean of five voxels along an axis, of those in the brain; C x X x Y x Z."""

    def sums(values: Tensor) -> Tensor:
        moved = values.movedim(1 + axis, -1)
        pooled = F.avg_pool1d(moved.flatten(0, -2), _BLUR_TAPS, 1, _BLUR_TAPS // 2)
        return pooled.reshape(moved.shape).movedim(-1, 1 + axis)

    return sums(volumes * brain) / sums(brain).clamp(min=1e-3)


def _jobs(plan: np.random.Generator, recipe: Recipe) -> Sequence[_Job]:
    jobs = []
    for target in sorted(plan.choice(len(MODALITIES), recipe.schedule.targets, replace=False).tolist()):
        others = [i for i in range(len(MODALITIES)) if i != target]
        count = 3 if plan.random() < recipe.data.single_missing else int(plan.integers(1, 3))
        jobs.append(_Job(target, tuple(sorted(plan.choice(others, count, replace=False).tolist()))))
    return jobs
