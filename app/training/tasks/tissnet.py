"""Training of TISS-Net: generator and segmentor end to end, against two discriminators."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor, nn

from app.core.constants import MODALITIES, Modality
from app.data.cases import Case
from app.data.labels import REGIONS
from app.inference.tumour.tissnet import DARK
from app.networks.architectures import TISSNET_WIDTHS, TissNetConfig
from app.networks.tissnet import losses as L
from app.networks.tissnet.discriminators import PatchDiscriminator3d
from app.networks.tissnet.model import TissNet, TissNetOutput
from app.preprocessing.normalization import BACKGROUND
from app.registry.checkpoints import load_tissnet
from app.registry.manifest import Entry
from app.registry.spec import TissNetSpec
from app.training import validation
from app.training.config import LossRecipe, Recipe
from app.training.data.cache import NORMALIZATION, CachedSubject
from app.training.data.patches import Patches, PatchSampler, PatchSource
from app.training.data.sections import Listed, PatchData, Section, check_rules
from app.training.data.splits import labelled_subjects
from app.training.data.variation.augmentation import vary_intensities, vary_patches
from app.training.fits.intensity import encode, fit_intensity
from app.training.placement import choose_volume_precision, placed3d
from app.training.promotion.request import ExportRequest, check_no_images
from app.training.promotion.writing import promote_scored, trained_subjects
from app.training.tasks.base import Task, TrainingContext, Update, add_to


class TissNetData(PatchData):
    """Choice of 3D patches.

    Attributes:
        targets: the sequences that are made: one, as in the paper, or several by one network.
        complete: whether it learns to segment exams that lack nothing as well.
        sources: those that it is given; if empty, all that some target is made from.
        regions: 1 (the whole tumour, as in the paper) or 3 (enhancing tumour, core, whole tumour).
    """

    targets: Listed[tuple[Modality, ...]] = ("t2f",)
    complete: bool = False
    sources: Listed[tuple[Modality, ...]] = ()
    regions: Literal[1, 3] = 3

    @property
    def inputs(self) -> tuple[Modality, ...]:
        """The sequences that the network is given, in challenge order."""
        lonely = self.targets[0] if len(self.targets) == 1 and not self.complete else None
        return tuple(m for m in MODALITIES if m in self.sources or (not self.sources and m != lonely))

    @model_validator(mode="after")
    def _check_sources(self) -> Self:
        lonely = len(self.targets) == 1 and not self.complete
        check_rules(
            {
                "data.targets names a sequence twice": len(set(self.targets)) == len(self.targets),
                "data.targets is empty; name a sequence, or set data.complete": bool(self.targets) or self.complete,
                "data.sources must not name the one target": not lonely or self.targets[0] not in self.sources,
            }
        )
        return self


class TissNetLosses(LossRecipe):
    """Weights of the losses (equations 1 to 11).

    Attributes:
        adversarial: of both discriminators; 0 leaves them out.
        l1_global, l1_tumour: mean absolute error everywhere, and in the tumour's box.
        perceptibility: what the frozen network misses in the made sequence.
        coarse: overlap of the generator's segmentation.
        fine, error, consistency: the segmentor's three terms.
        entropy: of the cross-entropy that is added to each Dice loss of a segmentation; the paper adds none.
    """

    adversarial: float = 1.0
    l1_global: float = 50.0
    l1_tumour: float = 200.0
    perceptibility: float = 25.0
    coarse: float = 1.0
    fine: float = 25.0
    error: float = 25.0
    consistency: float = 25.0
    entropy: float = 0.0

    @property
    def by_term(self) -> dict[str, float]:
        """The weight of each term: both adversarial ones have one, and S_p's own lesson counts as it is."""
        both = {"adversarial_whole": self.adversarial, "adversarial_tumour": self.adversarial}
        return {**self.model_dump(exclude={"entropy"}), **both, "perceptibility_dice": 1.0}


class TissNetNetwork(Section):
    """Shape of the networks, and how long the perceptibility network learns first.

    Attributes:
        preset: widths, of `app.networks.architectures.TISSNET_WIDTHS`.
        discriminator_width: channels of the discriminators' first layer.
        perceptibility_steps: steps in which S_p alone is trained, on the real target sequence; frozen after them.
        coarse_apart: whether the segmentor's losses leave the coarse segmentation alone; the paper's reach it.
    """

    preset: Literal["paper", "compact"] = "compact"
    discriminator_width: int = 16
    perceptibility_steps: int = 500
    coarse_apart: bool = False

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        check_rules({"tissnet.perceptibility_steps must not be negative": self.perceptibility_steps >= 0})
        return self


class TissNetRecipe(Recipe):
    """One training of a TISS-Net."""

    task: Literal["tissnet"] = "tissnet"
    data: TissNetData = TissNetData()
    losses: TissNetLosses = TissNetLosses()
    tissnet: TissNetNetwork = TissNetNetwork()

    @property
    def architecture(self) -> TissNetConfig:
        """Shape of the network."""
        cases = len(self.data.targets) + self.data.complete
        return TissNetConfig(TISSNET_WIDTHS[self.tissnet.preset], len(self.data.inputs), self.data.regions, cases)

    @property
    def spec(self) -> TissNetSpec:
        """Describe the model that is trained."""
        return TissNetSpec(
            architecture=self.architecture,
            normalization=NORMALIZATION,
            targets=self.data.targets,
            complete=self.data.complete,
            sources=self.data.inputs,
            window=self.data.patch,
        )


class TissNetTask(Task[TissNetRecipe]):
    """A generator and a segmentor, their perceptibility network, and two discriminators."""

    recipe_type = TissNetRecipe
    kind = "tissnet"

    average: TissNet

    def __init__(self, recipe: TissNetRecipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        self.network = placed3d(TissNet(recipe.architecture), device)
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        width, channels = recipe.tissnet.discriminator_width, len(recipe.data.inputs) + 1
        self.discriminators = placed3d(
            nn.ModuleDict({name: PatchDiscriminator3d(channels, width) for name in ("whole", "tumour")}), device
        )
        self.sources = [MODALITIES.index(m) for m in recipe.data.inputs]

    @classmethod
    def usable(cls, subjects: list[CachedSubject]) -> list[CachedSubject]:
        """Choose the subjects with a segmentation."""
        return labelled_subjects(subjects)

    @classmethod
    def read_weights(cls, entry: Entry) -> nn.Module:
        """Read a TISS-Net."""
        return load_tissnet(entry)

    def new_source(self, context: TrainingContext[TissNetRecipe]) -> PatchSource:
        """Build the source of batches of patches."""
        recipe = self.recipe
        sampler = PatchSampler(context.subjects, recipe.data, BACKGROUND, seed=recipe.seed, rank=context.group.rank)
        return PatchSource(sampler, recipe.schedule.batch_size, context.prefetch)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that learn."""
        return {"tissnet": self.network, "discriminators": self.discriminators}

    @property
    def precision(self) -> torch.dtype:
        """Precision in which the networks train."""
        return choose_volume_precision(self.recipe.schedule.precision, self.device, self.recipe.data.patch[0])

    # ------------------------------------------------------------ one step

    def step(self, source: PatchSource, step: int, pieces: int, update: Update) -> dict[str, Tensor]:
        """Learn from one batch of patches: S_p at first, then everything else."""
        sample, random = source.at(step)
        patches = vary_patches(sample.to(self.device), self.recipe.augmentation, random, BACKGROUND)
        seen = vary_intensities(patches, self.recipe.augmentation, random, BACKGROUND)
        # Without a target there is nothing for S_p to look at.
        first = bool(self.recipe.data.targets) and step < self.recipe.tissnet.perceptibility_steps
        target = self._draw_target(step, first)
        self.network.perceptibility.requires_grad_(first)
        for branch in (self.network.generator, self.network.segmentor):
            branch.requires_grad_(not first)
        self.network.zero_grad(set_to_none=True)
        self.discriminators.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        made: list[tuple[_Batch, Tensor]] = []
        for part, shown in zip(patches.pieces(pieces), seen.chunk(pieces), strict=True):
            share = len(part) / len(patches)
            batch = self._batch(part, shown, target)
            losses = self._perceptibility(batch) if first else self._losses(batch, made)
            (share * L.total_loss(losses, self.recipe.losses.by_term)).backward()  # type: ignore[no-untyped-call]
            add_to(totals, losses, share)
        update("tissnet")
        if not first and target is not None and self.recipe.losses.adversarial > 0:
            self._teach_discriminators(made, totals, update)
        return totals

    def _draw_target(self, step: int, first: bool) -> Modality | None:
        """Draw what a batch lacks, all cases alike; a complete exam teaches S_p nothing.

        All processes draw the same: each step then moves the same networks everywhere.
        """
        data, cases = self.recipe.data, self.recipe.spec.cases
        count = len(data.targets) if first else cases
        number = int(np.random.default_rng([self.recipe.seed, step, 0]).integers(max(count, 1)))
        return data.targets[number] if number < len(data.targets) else None

    def _batch(self, part: Patches, shown: Tensor, target: Modality | None) -> _Batch:
        """Bring patches to [-1, 1], and their labels to regions; withhold the target."""
        regions = list(REGIONS.values()) if self.recipe.data.regions == len(REGIONS) else [REGIONS["WT"]]
        truth = torch.stack([torch.isin(part.labels, torch.tensor(r, device=part.labels.device)) for r in regions], 1)
        sources = _to_range(shown, part.scale, part.brain)
        wanted = None
        if target is not None:
            at = MODALITIES.index(target)
            wanted = _to_range(part.images, part.scale, part.brain)[:, at : at + 1]
            sources[:, at] = DARK
        number = self.recipe.spec.case_of(target)
        return _Batch(
            sources=sources[:, self.sources],
            target=wanted,
            truth=truth.float(),
            case=torch.full((len(part),), number, device=sources.device),
        )

    def _perceptibility(self, batch: _Batch) -> dict[str, Tensor]:
        """Let S_p learn from the real target sequence."""
        with self.mixed_precision():
            answer = self.network.perceptibility(batch.target, batch.case)
        return {"perceptibility_dice": L.segmentation_loss(answer, batch.truth, self.recipe.losses.entropy)}

    def _losses(self, batch: _Batch, made: list[tuple[_Batch, Tensor]]) -> dict[str, Tensor]:
        """Compute every term of equation 10 that has a weight; of a complete exam those of the segmentation.

        Args:
            made: the batch and its made sequence are added to it.
        """
        weights = self.recipe.losses
        synthesis, losses = self._segmentation_losses(batch)
        if batch.target is None:
            return losses
        made.append((batch, synthesis.detach()))
        mask = L.tumour_mask(batch.truth)
        losses |= L.l1_losses(synthesis, batch.target, mask)
        if weights.perceptibility > 0:
            with self.mixed_precision():
                seen = self.network.perceptibility(synthesis, batch.case)
            losses["perceptibility"] = L.perceptibility_loss(seen, batch.truth)
        if weights.adversarial > 0:
            self.discriminators.requires_grad_(False)
            with self.mixed_precision():
                losses["adversarial_whole"] = L.fooling_loss(self.discriminators["whole"](batch.sources, synthesis))
                losses["adversarial_tumour"] = L.fooling_loss(
                    self.discriminators["tumour"](mask * batch.sources, mask * synthesis)
                )
            self.discriminators.requires_grad_(True)
        return losses

    def _segmentation_losses(self, batch: _Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Make the target sequence; give it, and the terms of the coarse and of the fine segmentation."""
        weights, apart = self.recipe.losses, self.recipe.tissnet.coarse_apart
        segmentor_learns = weights.fine + weights.error + weights.consistency > 0
        with self.mixed_precision():
            if segmentor_learns:
                output: TissNetOutput = self.network(batch.sources, batch.case, apart)
                synthesis, coarse = output.synthesis, output.coarse
            else:
                synthesis, coarse = self.network.generate(batch.sources, batch.case)
        losses = {"coarse": L.segmentation_loss(coarse, batch.truth, weights.entropy)}
        if segmentor_learns:
            seen = replace(output, coarse=coarse.detach() if apart else coarse)
            losses |= L.segmentor_losses(seen, batch.truth, weights.entropy)
        return synthesis, losses

    def _teach_discriminators(
        self, made: list[tuple[_Batch, Tensor]], totals: dict[str, Tensor], update: Update
    ) -> None:
        """Let both discriminators learn from real and made sequences (equation 11)."""
        count = sum(len(synthesis) for _, synthesis in made)
        for batch, synthesis in made:
            assert batch.target is not None
            mask = L.tumour_mask(batch.truth)
            losses = {}
            for name, window in (("whole", torch.ones_like(mask)), ("tumour", mask)):
                judge = self.discriminators[name]
                with self.mixed_precision():
                    of_made = judge(window * batch.sources, window * synthesis)
                    of_real = judge(window * batch.sources, window * batch.target)
                losses[f"discriminator_{name}"] = L.discriminator_loss(of_made, of_real)
            share = len(synthesis) / count
            (share * torch.stack(list(losses.values())).sum()).backward()  # type: ignore[no-untyped-call]
            add_to(totals, losses, share)
        update("discriminators")

    # ------------------------------------------------------------ looking at it

    @torch.no_grad()
    def pictures(self, sampler: PatchSampler) -> list[list[NDArray[np.float32]]]:
        """Draw one slice per case: the real and the made sequence; the truth, the coarse and the fine answer."""
        patches = sampler.draw(np.random.default_rng([self.recipe.seed, 2**32]), 1).to(self.device)
        middle, rows = patches.images.shape[-1] // 2, []
        complete = [None] if self.recipe.data.complete else []
        for target in [*self.recipe.data.targets, *complete]:
            batch = self._batch(patches, patches.images, target)
            output = self.average(batch.sources, batch.case)
            if batch.target is not None:
                rows.append([batch.target, output.synthesis])
            rows.append([v.mean(dim=1, keepdim=True) for v in (batch.truth, output.coarse, output.fine)])
        return [[v[0, 0, ..., middle].float().cpu().numpy() for v in row] for row in rows]

    def validate(self, cases: Sequence[Case], masks: Mapping[str, Path]) -> dict[str, float]:
        """Score the averaged network's segmentation of exams that lack the target."""
        rows = validation.score_tissnet(self.average, self.recipe.spec, cases, masks, self.device, self.precision)
        return validation.means(rows)

    def selection_score(self, scores: Mapping[str, float]) -> float:
        """Give the Dice of the whole tumour, and of the core where it is segmented."""
        return scores["dice_WT"] + (scores["dice_TC"] if self.recipe.data.regions > 1 else 0.0)

    @classmethod
    def check_export(cls, request: ExportRequest) -> None:
        """Check that nothing is asked for that is for generators."""
        super().check_export(request)
        check_no_images(request)

    @classmethod
    def export(cls, request: ExportRequest) -> Entry:
        """Write the network, unless it finds less than the one of its name."""
        recipe, device = request.recipe_of(TissNetRecipe), request.torch_device
        network, rows = TissNet(recipe.architecture), None
        request.state.load_into(network)
        if request.cases:
            precision = choose_volume_precision(recipe.schedule.precision, device, recipe.data.patch[0])
            cases, masks = request.cases, request.masks
            rows = validation.score_tissnet(network.to(device), recipe.spec, cases, masks, device, precision)
        brightness = encode(fit_intensity([s.intensities for s in trained_subjects(request)]))
        return promote_scored(request, recipe.spec, rows, intensity=brightness)


@dataclass(frozen=True)
class _Batch:
    """Hold patches in the network's units.

    Attributes:
        sources: in [-1, 1], B x sources x X x Y x Z.
        target: in [-1, 1], B x 1 x X x Y x Z; None for complete exams.
        truth: 0 or 1, B x K x X x Y x Z.
        case: int64 (B,), the kind of exam.
    """

    sources: Tensor
    target: Tensor | None
    truth: Tensor
    case: Tensor


def _to_range(normalized: Tensor, scale: Tensor, brain: Tensor) -> Tensor:
    """Bring z-scores to [-1, 1], from the intensity 0 to the clip; -1 outside the brain.

    Args:
        scale: B x 4 x 2, z-scores of 0 and of the clip.
    """
    low, high = scale[..., 0, None, None, None], scale[..., 1, None, None, None]
    return torch.where(brain > 0, ((normalized - low) / (high - low)).clamp(0, 1) * 2 - 1, torch.full_like(low, DARK))


TASK = TissNetTask
