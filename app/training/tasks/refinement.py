"""Training of the 3D refiner on patches of a first stage's volumes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor, nn

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.data.cases import Case
from app.networks.architectures import REFINER_PRESETS, RefinerConfig
from app.networks.refiner import Refiner
from app.networks.unet3d import Segmenter3d
from app.preprocessing.normalization import BACKGROUND
from app.registry.checkpoints import load_refiner
from app.registry.manifest import MANIFEST, Entry, read_manifest
from app.registry.spec import FirstStage, RefinerSpec
from app.training import losses as L
from app.training import validation
from app.training.config import ContrastRecipe, LossRecipe, Recipe, TargetsSchedule, WindowRecipe
from app.training.data.first_stage import StageOne, open_stage_one
from app.training.data.patches import Patches, PatchSampler, PatchSource
from app.training.data.sections import MissingData, PatchData, check_rules
from app.training.data.variation.augmentation import vary_intensities, vary_patches
from app.training.placement import placed3d
from app.training.promotion.request import ExportRequest
from app.training.promotion.writing import promote_refiner
from app.training.tasks.base import Task, TrainingContext, Update, add_to, masked

#: Nodes per side of the smooth error that a patch of the first stage is given.
_DRIFT_NODES = 4
_BLUR_TAPS = 5


class RefinementData(PatchData, MissingData):
    """Choice of 3D patches, and of the sequences that are missing beside the target.

    Attributes:
        t1c_share: probability that a T1c is refined, where one sequence of a patch is; the others share the rest. A
            segmenter finds least in a synthesised T1c, so most is to be learnt from it.
    """

    t1c_share: float = 0.25

    @model_validator(mode="after")
    def _check_share(self) -> Self:
        check_rules({"data.t1c_share must be above 0 and below 1": 0 < self.t1c_share < 1})
        return self


class RefinementLosses(LossRecipe):
    """Weights of the losses: SSIM and Dice alike (equation 7).

    Attributes:
        l1: mean absolute error in the brain; the paper has none.
        ssim: one minus SSIM; `ssim_tissue` says whether over the whole brain or as equal halves of healthy and tumour.
        dice: one minus the Dice of the frozen 3D segmenter's answer to the four sequences.
    """

    l1: float = 0.0
    ssim: float = 1.0
    ssim_tissue: Literal["whole", "dual"] = "whole"
    dice: float = 1.0

    @model_validator(mode="after")
    def _check_any(self) -> Self:
        check_rules({"one of losses.l1, ssim and dice must be above 0": max(self.l1, self.ssim, self.dice) > 0})
        return self


class NetworkRecipe(WindowRecipe):
    """Shape of the refiner, and how its first stage is made worse.

    A generator makes its own training subjects better than any other. What the refiner is taught on is therefore made
    worse first, so that it does not learn to trust a first stage that is better than it will be: the last four say how
    much, in the brain, each patch by its own random share.

    Attributes:
        width: channels at full resolution, as many as are compared; the paper's is 64.
        blur: probability of a blur by five voxels, along an axis drawn per patch.
        drift: largest deviation of a smooth error, in normalized units.
        contrast: largest relative change of the patch's voxels.
        noise: largest deviation of Gaussian noise, in normalized units.
    """

    width: Literal[16, 32, 64] = 16
    blur: float = 0.5
    drift: float = 0.1
    contrast: float = 0.1
    noise: float = 0.05

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        check_rules(
            {
                "refinement.blur must be from 0 to 1": 0 <= self.blur <= 1,
                "refinement.drift, contrast and noise must not be negative": min(self.drift, self.contrast, self.noise)
                >= 0,
            }
        )
        return self


class RefinementRecipe(Recipe):
    """One training of a refiner."""

    task: Literal["refinement"] = "refinement"
    data: RefinementData = RefinementData()
    losses: RefinementLosses = RefinementLosses()
    refinement: NetworkRecipe = NetworkRecipe()
    schedule: TargetsSchedule
    output: ContrastRecipe = ContrastRecipe()

    @model_validator(mode="after")
    def _check_targets(self) -> Self:
        count = self.schedule.targets_per_batch
        check_rules({"a refiner sees z-scores of each volume: leave out normalization": self.normalization.is_default})
        check_rules({"schedule.targets_per_batch must be 1 to 4": 1 <= count <= len(MODALITIES)})
        return self


def refiner_config(recipe: RefinementRecipe) -> RefinerConfig:
    """Give the refiner's shape that a recipe asks for."""
    return RefinerConfig(REFINER_PRESETS[recipe.refinement.width])


def refiner_spec(recipe: RefinementRecipe, first_stage: FirstStage | None) -> RefinerSpec:
    """Describe the refiner that a recipe trains."""
    return RefinerSpec(
        architecture=refiner_config(recipe),
        normalization=recipe.normalization.build(),
        window=recipe.data.patch,
        overlap=recipe.refinement.overlap,
        contrast=recipe.output.contrast,
        first_stage=first_stage,
    )


@dataclass(frozen=True)
class _Job:
    """The sequence that is refined, and those that are present."""

    target: int
    members: tuple[int, ...]


class RefinementTask(Task[RefinementRecipe]):
    """A refiner, and the frozen 3D segmenter if it teaches.

    Another segmenter measures the result.
    """

    recipe_type = RefinementRecipe
    kind = "refiner"
    needs_stage_one = True
    takes_simulated = False
    teacher_name = "teaching_segmenter"

    average: Refiner

    def __init__(
        self,
        recipe: RefinementRecipe,
        device: torch.device,
        segmenter: Segmenter3d | None = None,
        stage_one: StageOne | None = None,
    ) -> None:
        super().__init__(recipe, device)
        self.refiner = placed3d(Refiner(refiner_config(recipe)), device)
        self.average = copy.deepcopy(self.refiner).requires_grad_(False).eval()
        self.segmenter = None if segmenter is None else placed3d(segmenter, device)
        self.stage_one = stage_one

    @classmethod
    def teaching_loss(cls, recipe: RefinementRecipe) -> str | None:
        """Name the loss through which a frozen segmenter teaches; None where none does."""
        return "dice" if recipe.losses.dice > 0 else None

    @classmethod
    def open(cls, context: TrainingContext[RefinementRecipe]) -> Self:
        """Build the untrained refiner behind its first stage, whose volumes of all subjects are made."""
        recipe, group = context.recipe, context.group
        stage_one = open_stage_one(context.stage_one, context.before, group, context.data, context.subjects)
        torch.manual_seed(recipe.seed)
        return cls(recipe, group.device, context.teacher3d(cls.teaching_loss(recipe)), stage_one)

    @property
    def first_stage(self) -> FirstStage | None:
        """The generator whose volumes are corrected."""
        return None if self.stage_one is None else self.stage_one.described

    @classmethod
    def read_weights(cls, entry: Entry) -> nn.Module:
        """Read a refiner."""
        return load_refiner(entry)

    def new_source(self, context: TrainingContext[RefinementRecipe]) -> PatchSource:
        """Build the source of batches of patches, with the first stage's volumes."""
        recipe = self.recipe
        sampler = PatchSampler(context.subjects, recipe.data, BACKGROUND, seed=recipe.seed, rank=context.group.rank,
                               extra_channels=self.stage_one)  # fmt: skip
        return PatchSource(sampler, recipe.schedule.batch_size, context.prefetch)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The network that learns."""
        return {"refiner": self.refiner}

    def step(self, source: PatchSource, step: int, pieces: int, update: Update) -> dict[str, Tensor]:
        """Learn from one batch of patches, several sequences of it in turn."""
        recipe = self.recipe
        patches, own = source.at(step)
        patches = vary_patches(patches.to(self.device), recipe.augmentation, own, BACKGROUND)
        seen = vary_intensities(patches, recipe.augmentation, own, BACKGROUND)
        stage = degrade(patches.extra_channels, patches.brain, recipe.refinement, own)
        # Shared by all processes, so that each step refines the same sequences everywhere.
        jobs = _jobs(np.random.default_rng([recipe.seed, step]), recipe)
        self.refiner.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        parts = zip(patches.pieces(pieces), seen.chunk(pieces), stage.chunk(pieces), strict=True)
        for part, shown, before in parts:
            share = len(part) / len(patches)
            for job in jobs:
                losses = self._losses_of(part, shown, before, job)
                weighted = torch.stack([getattr(recipe.losses, name) * value for name, value in losses.items()]).sum()
                # One backward pass per sequence: the gradients add up while memory holds one graph only.
                (share * weighted).backward()  # type: ignore[no-untyped-call]
                add_to(totals, losses, share / len(jobs))
        update("refiner")
        return totals

    def _losses_of(self, part: Patches, shown: Tensor, before: Tensor, job: _Job) -> dict[str, Tensor]:
        weights, target = self.recipe.losses, slice(job.target, job.target + 1)
        truth = part.images[:, target]
        index = torch.full((len(part),), job.target, device=self.device)
        with self.mixed_precision():
            refined = self.refiner(before[:, target], shown, index, job.members)
        losses: dict[str, Tensor] = {}
        if weights.l1 > 0:
            losses["l1"] = L.l1_loss(refined, truth, part.brain)
        if weights.ssim > 0:
            tumour = (part.labels[:, None] > 0).float() if weights.ssim_tissue == "dual" else None
            losses["ssim"] = L.ssim_loss(refined, truth, part.brain, part.scale[:, job.target], tumour)
        if self.segmenter is not None and weights.dice > 0 and part.labelled.any():
            losses["dice"] = self._dice(masked(refined, part.brain), part, job.target)
        return losses

    def _dice(self, refined: Tensor, part: Patches, target: int) -> Tensor:
        """How far from the truth the segmenter's answer is, with the refined sequence among three real ones."""
        assert self.segmenter is not None
        images = torch.cat([part.images[:, :target], refined, part.images[:, target + 1 :]], dim=1)[part.labelled]
        with self.mixed_precision():
            logits = self.segmenter(images)
        return L.dice_loss(logits, part.labels[part.labelled])

    @torch.no_grad()
    def pictures(self, sampler: PatchSampler) -> list[list[NDArray[np.float32]]]:
        """Draw truth, first stage and refined slice of one patch, every sequence in turn."""
        patches = sampler.draw(np.random.default_rng([self.recipe.seed, 2**32]), 1).to(self.device)
        rows = []
        for target in range(len(MODALITIES)):
            members = tuple(i for i in range(len(MODALITIES)) if i != target)
            before = patches.extra_channels[:, target : target + 1]
            index = torch.full((1,), target, device=self.device)
            refined = masked(self.average(before, patches.images, index, members), patches.brain)
            volumes = (patches.images[:, target : target + 1], before, refined)
            rows.append([v[0, 0, :, :, v.shape[-1] // 2].cpu().numpy() for v in volumes])
        return rows

    def validate(self, cases: Sequence[Case], masks: Mapping[str, Path]) -> dict[str, float]:
        """Score the first stage's volumes after the averaged refiner, each sequence dropped in turn."""
        assert self.stage_one is not None
        spec = refiner_spec(self.recipe, self.first_stage)
        model = validation.candidate_refined_model(self.average, spec, self.stage_one.model)
        return validation.means(validation.score_missing_sequences(model, cases, masks))

    @classmethod
    def check_export(cls, request: ExportRequest) -> None:
        """Check that nothing is asked for that its first stage decides."""
        super().check_export(request)
        if request.output.keys() - {"contrast"}:
            raise UsageError("a refiner joins no views, its first stage does; leave out --fusion and --flip-average.")

    @classmethod
    def export(cls, request: ExportRequest) -> Entry:
        """Write the refiner, unless its first stage is better without it."""
        recipe, first = request.recipe_of(RefinementRecipe), _first_stage_of(request)
        network = Refiner(refiner_config(recipe))
        request.state.load_into(network)
        stage_one = StageOne(first, request.device).model if request.cases else None
        return promote_refiner(request, first, network, refiner_spec(recipe, request.state.first_stage), stage_one)


def _first_stage_of(request: ExportRequest) -> Entry:
    """The generator that a run's refiner was trained for, as the weights folder has it."""
    wanted, weights = request.state.first_stage, request.weights
    assert wanted is not None
    entries = read_manifest(weights).entries if (weights / MANIFEST).exists() else {}
    if wanted.model not in entries or entries[wanted.model].sha256 != wanted.sha256:
        raise UsageError(
            f"the run refines model {wanted.model!r} (sha256 {wanted.sha256[:8]}), which {weights} lacks; "
            "export into the folder that has it."
        )
    first = entries[wanted.model]
    StageOne(first, "cpu").check_fusion(wanted)
    return first


def degrade(stage: Tensor, brain: Tensor, recipe: NetworkRecipe, random: np.random.Generator) -> Tensor:
    """Make first-stage patches as bad as those of unseen subjects; same shape, masked.

    Args:
        stage: float32 B x C x X x Y x Z, normalized.
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


def _jobs(plan: np.random.Generator, recipe: RefinementRecipe) -> Sequence[_Job]:
    jobs, share = [], recipe.data.t1c_share
    odds = [share if m == "t1c" else (1 - share) / (len(MODALITIES) - 1) for m in MODALITIES]
    for target in sorted(
        plan.choice(len(MODALITIES), recipe.schedule.targets_per_batch, replace=False, p=odds).tolist()
    ):
        others = [i for i in range(len(MODALITIES)) if i != target]
        count = 3 if plan.random() < recipe.data.single_missing else int(plan.integers(1, 3))
        jobs.append(_Job(target, tuple(sorted(plan.choice(others, count, replace=False).tolist()))))
    return jobs


TASK = RefinementTask
