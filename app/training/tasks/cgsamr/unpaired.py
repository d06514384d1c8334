"""Training of UCG-SAMR: outlines with tissues, and exams, translated into each other (equations 7 to 10)."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.core.constants import MODALITIES
from app.networks.cgsamr import losses as L
from app.networks.cgsamr.discriminators import PatchDiscriminator
from app.networks.cgsamr.generator import SimulatedSlices
from app.networks.cgsamr.unpaired import UcgSamr
from app.training.data.slices import SampledStep
from app.training.tasks.base import TrainingContext, Update, add_to
from app.training.tasks.cgsamr.outlines import OutlineSampler, OutlineSource, Slices, copy_buffers, slices_of
from app.training.tasks.cgsamr.recipe import UcgSamrRecipe
from app.training.tasks.cgsamr.simulation_task import SimulationTask, sample_rows

#: Added to the seed where outlines are drawn: they belong to other slices than the exams.
_OTHER_SEED = 2**64


class UcgSamrTask(SimulationTask[UcgSamrRecipe]):
    """Both encoders and decoders, and a discriminator of each domain."""

    recipe_type = UcgSamrRecipe

    average: UcgSamr

    def __init__(self, recipe: UcgSamrRecipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        config, width = recipe.architecture, recipe.cgsamr.discriminator_width
        self.network = UcgSamr(config).to(device)
        self._random = torch.Generator()
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        # The paper has one discriminator for each domain, and does not say that they look by label or at two scales.
        self.discriminators = nn.ModuleDict(
            {"outlines": PatchDiscriminator(config.inputs, width), "exams": PatchDiscriminator(config.sequences, width)}
        ).to(device)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that learn, in the order of their updates."""
        if self.recipe.losses.adversarial == 0:
            return {"translators": self.network}
        return {"translators": self.network, "discriminators": self.discriminators}

    def new_source(self, context: TrainingContext[UcgSamrRecipe]) -> OutlineSource:
        """Build what exams, and outlines of other slices, come from."""
        samplers = self.new_sampler(context), self.new_sampler(context, _OTHER_SEED)
        return OutlineSource(*samplers, self.recipe.schedule.batch_size, self.shift)

    @functools.cached_property
    def levels(self) -> Tensor:
        """The average brightness of each tissue, by the atlas: sequences x tissues."""
        return L.tissue_levels(self.atlas.images, self.atlas.tissue).to(self.device)

    # ------------------------------------------------------------ one step

    def step(self, source: OutlineSource, step: int, pieces: int, update: Update) -> dict[str, Tensor]:
        """Learn from a batch of outlines and one of exams that do not belong together."""
        for network in self.networks.values():
            network.zero_grad(set_to_none=True)
        seed = np.random.SeedSequence([self.recipe.seed, step]).generate_state(1, np.uint64)[0]
        self._random.manual_seed(int(seed) >> 1)
        outlines, exams = (self._slices(sample) for sample in (source.outlines_at(step), source.at(step)))
        totals: dict[str, Tensor] = {}
        made: list[tuple[Tensor, Tensor]] = []
        for one, other in zip(outlines.pieces(pieces), exams.pieces(pieces), strict=True):
            losses, both = self.losses(one.inputs, other.exam)
            made.append(both)
            share = len(one) / len(outlines)
            total = torch.stack([self.weight_of(name) * value for name, value in losses.items()]).sum()
            (share * total).backward()  # type: ignore[no-untyped-call]
            add_to(totals, losses, share)
        update("translators")
        copy_buffers(self.average, self.network)
        if "discriminators" in self.networks:
            self._discriminate(outlines.inputs, exams.exam, made, totals)
            update("discriminators")
        return totals

    def weight_of(self, name: str) -> float:
        """Give the weight of a term by its stream."""
        return float(getattr(self.recipe.losses, name.rpartition("_")[0]))

    def losses(self, outline: Tensor, exam: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor]]:
        """Compute the terms of equation 10, unweighted, and what was translated, detached.

        Args:
            outline: x of domain one, B x inputs x H x W.
            exam: y of domain two, B x sequences x H x W; not of the same slices.
        """
        network = self.network
        with self.mixed_precision():
            code1, code2 = network.encoder1(outline), network.encoder2(exam)
            back1, back2 = network.decoder1(code1), network.decoder2(code2)
            crossed: SimulatedSlices = network.decoder2(code1)
            found: Tensor = network.decoder1(code2)
            cycle1 = network.decoder1(network.encoder2(crossed.image))
            cycle2: SimulatedSlices = network.decoder2(network.encoder1(found))
        losses = {
            "reconstruction_1": L.reconstruction_loss(outline, back1),
            "reconstruction_2": L.reconstruction_loss(exam, back2.image),
            "cycle_1": L.reconstruction_loss(outline, cycle1),
            "cycle_2": L.reconstruction_loss(exam, cycle2.image),
        }
        if back2.confidence is not None and self.recipe.losses.confidence > 0:
            losses["confidence_1"] = self.confidence_loss(back2, exam)
            losses["confidence_2"] = self.confidence_loss(cycle2, exam)
        first = 1 + self.recipe.architecture.labels
        if self.recipe.losses.darkness > 0:
            brain = outline[:, :first].amax(dim=1, keepdim=True)
            losses["darkness_2"] = L.darkness_loss(crossed.image, (brain > 0).to(brain))
        if self.recipe.losses.tissue > 0:
            losses["tissue_2"] = L.tissue_loss(crossed.image, outline[:, first:] * outline[:, :1], self.levels)
        if "discriminators" in self.networks:
            self.discriminators.requires_grad_(False)
            with self.mixed_precision():
                losses["adversarial_1"] = L.adversarial_loss([self.discriminators["outlines"](self._noisy(found))])
                losses["adversarial_2"] = L.adversarial_loss([self.discriminators["exams"](crossed.image)])
            self.discriminators.requires_grad_(True)
        return losses, (found.detach().float(), crossed.image.detach().float())

    def _slices(self, sample: SampledStep) -> Slices:
        return slices_of(sample, self.recipe.augmentation, self.recipe.architecture, self.device)

    def _discriminate(
        self, outlines: Tensor, exams: Tensor, made: list[tuple[Tensor, Tensor]], totals: dict[str, Tensor]
    ) -> None:
        """Let each discriminator tell what is real from what was translated (equation 8)."""
        real: Mapping[str, Tensor] = {"outlines": self._noisy(outlines), "exams": exams}
        made = [(self._noisy(found), exam) for found, exam in made]
        for number, (name, whole) in enumerate(real.items()):
            for true, parts in zip(whole.chunk(len(made)), made, strict=True):
                network, false = self.discriminators[name], parts[number]
                with self.mixed_precision():
                    loss = L.discriminator_loss([network(false)], [network(true)])
                share = len(true) / len(whole)
                (share * self.recipe.losses.discriminator * loss).backward()  # type: ignore[no-untyped-call]
                add_to(totals, {f"discriminator_{number + 1}": loss}, share)

    def _noisy(self, outlines: Tensor) -> Tensor:
        """Add the noise with which the discriminator of domain one sees outlines."""
        deviation = self.recipe.cgsamr.outline_noise
        if deviation == 0:
            return outlines
        noise = torch.randn(outlines.shape, generator=self._random).to(outlines)
        return outlines + deviation * noise

    # ------------------------------------------------------------ looking at it

    @torch.no_grad()
    def pictures(self, sampler: OutlineSampler) -> list[list[NDArray[np.float32]]]:
        """Draw one slice: each sequence real, made of its outline and intermediate; then labels, given and found."""
        draw = np.random.default_rng([self.recipe.seed, 2**32])
        slices = self._slices(SampledStep(sampler.draw(draw, draw, 1), draw, draw))
        rows = sample_rows(slices, self.average(slices.inputs), len(MODALITIES))
        found = self.average.segment(slices.exam)[0].float() / self.recipe.architecture.labels
        return [*rows, [slices.labels[0].float().cpu().numpy() / 3, found.cpu().numpy()]]
