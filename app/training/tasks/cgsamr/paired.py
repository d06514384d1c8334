"""Training of CG-SAMR: a generator with its lesion segmenter against label-wise discriminators (equations 1 to 6)."""

from __future__ import annotations

import copy

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.core.constants import CLASSES, MODALITIES
from app.networks.cgsamr import losses as L
from app.networks.cgsamr import new_simulator
from app.networks.cgsamr.discriminators import LabelwiseDiscriminators
from app.networks.cgsamr.generator import SimulatedSlices
from app.networks.cgsamr.inputs import label_planes
from app.networks.unet import UNet
from app.training.data.slices import SampledStep
from app.training.tasks.base import TrainingContext, Update, add_to
from app.training.tasks.cgsamr.outlines import OutlineSampler, OutlineSource, Slices, copy_buffers, slices_of
from app.training.tasks.cgsamr.recipe import CgSamrRecipe
from app.training.tasks.cgsamr.simulation_task import SimulationTask, sample_rows


class CgSamrTask(SimulationTask[CgSamrRecipe]):
    """A generator, the U-Net that finds its lesions, and six discriminators."""

    recipe_type = CgSamrRecipe

    def __init__(self, recipe: CgSamrRecipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        shape, config = recipe.cgsamr, recipe.architecture
        self.generator: nn.Module = new_simulator(config).to(device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        seen = config.inputs + config.sequences
        self.discriminators = LabelwiseDiscriminators(
            seen, shape.discriminator_width, shape.labelwise, shape.scales
        ).to(device)
        self.segmenter = UNet(config.sequences, CLASSES, shape.segmenter_widths).to(device)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that learn, in the order of their updates."""
        networks: dict[str, nn.Module] = {"generator": self.generator}
        if self.recipe.losses.shape > 0:
            networks["segmenter"] = self.segmenter
        if self.recipe.losses.looks:
            networks["discriminators"] = self.discriminators
        return networks

    def new_source(self, context: TrainingContext[CgSamrRecipe]) -> OutlineSource:
        """Build what batches of slices come from."""
        return OutlineSource(self.new_sampler(context), None, self.recipe.schedule.batch_size, self.shift)

    # ------------------------------------------------------------ one step

    def step(self, source: OutlineSource, step: int, pieces: int, update: Update) -> dict[str, Tensor]:
        """Learn from one batch of slices: the generator with the segmenter, then the discriminators."""
        for network in self.networks.values():
            network.zero_grad(set_to_none=True)
        batch = slices_of(source.at(step), self.recipe.augmentation, self.recipe.architecture, self.device)
        totals: dict[str, Tensor] = {}
        made: list[Tensor] = []
        for part in batch.pieces(pieces):
            losses, image = self.losses(part)
            made.append(image)
            total = torch.stack([getattr(self.recipe.losses, name) * value for name, value in losses.items()]).sum()
            (len(part) / len(batch) * total).backward()  # type: ignore[no-untyped-call]
            add_to(totals, losses, len(part) / len(batch))
        for name in ("generator", "segmenter"):
            if name in self.networks:
                update(name)
        copy_buffers(self.average, self.generator)
        if self.recipe.losses.looks:
            self._discriminate(batch, torch.cat(made), pieces, update, totals)
        return totals

    def losses(self, part: Slices) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the terms of equation 6 that have a weight, unweighted, and the made exams, detached."""
        weights = self.recipe.losses
        with self.mixed_precision():
            made: SimulatedSlices = self.generator(part.inputs)
        image = made.image.float()
        losses: dict[str, Tensor] = {}
        if weights.looks:
            losses |= self._looked_at(part, image)
        if weights.shape > 0:
            losses["shape"] = self._shape(part, image)
        if weights.confidence > 0 and made.confidence is not None and made.intermediate is not None:
            losses["confidence"] = self.confidence_loss(made, part.exam)
        if weights.l1 > 0:
            losses["l1"] = (image - part.exam).abs().mean()
        return losses, image.detach()

    def _looked_at(self, part: Slices, image: Tensor) -> dict[str, Tensor]:
        """Compute equations 2 and 3 for the generator; the discriminators do not learn from it."""
        weights = self.recipe.losses
        self.discriminators.requires_grad_(False)
        with self.mixed_precision():
            of_made = self.discriminators(part.inputs, image, part.masks)
            with torch.no_grad():
                of_real = self.discriminators(part.inputs, part.exam, part.masks)
        self.discriminators.requires_grad_(True)
        losses = {}
        if weights.adversarial > 0:
            losses["adversarial"] = L.adversarial_loss(of_made)
        if weights.feature > 0:
            losses["feature"] = L.feature_matching_loss(of_made, of_real)
        return losses

    def _shape(self, part: Slices, image: Tensor) -> Tensor:
        """Compute equation 5; it moves the segmenter and the generator."""
        with self.mixed_precision():
            logits = self.segmenter(torch.cat([part.exam, image]))
        of_real, of_made = logits.float().softmax(dim=1)[:, 1:].chunk(2)
        return L.shape_consistency_loss(label_planes(part.labels, CLASSES - 1), of_real, of_made)

    def _discriminate(
        self, batch: Slices, made: Tensor, pieces: int, update: Update, totals: dict[str, Tensor]
    ) -> None:
        for part, image in zip(batch.pieces(pieces), made.chunk(pieces), strict=True):
            with self.mixed_precision():
                of_made = self.discriminators(part.inputs, image, part.masks)
                of_real = self.discriminators(part.inputs, part.exam, part.masks)
            loss, share = L.discriminator_loss(of_made, of_real), len(part) / len(batch)
            (share * self.recipe.losses.discriminator * loss).backward()  # type: ignore[no-untyped-call]
            add_to(totals, {"discriminators": loss}, share)
        update("discriminators")

    # ------------------------------------------------------------ looking at it

    @torch.no_grad()
    def pictures(self, sampler: OutlineSampler) -> list[list[NDArray[np.float32]]]:
        """Draw one slice: each sequence real, made and intermediate; then the labels and the mean confidence."""
        draw = np.random.default_rng([self.recipe.seed, 2**32])
        sample = SampledStep(sampler.draw(draw, draw, 1), draw, draw)
        slices = slices_of(sample, self.recipe.augmentation, self.recipe.architecture, self.device)
        return sample_rows(slices, self.average(slices.inputs), len(MODALITIES))
