"""Networks of the task `ds3net` and one step of each of its stages (equations 1 to 7)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from app.core.constants import MODALITIES
from app.networks.ds3net import losses as L
from app.networks.ds3net.generator import (
    CONTRASTED,
    DISTILLED,
    Ds3NetOutput,
    PatchDiscriminator,
    ProjectionHeads,
)
from app.networks.ds3net.slice_generator import Ds3NetSliceGenerator
from app.preprocessing.normalization import BACKGROUND
from app.training.data.slices import SampledStep
from app.training.data.unpaired import PairedSource
from app.training.data.variation.augmentation import vary_geometry, vary_intensities
from app.training.tasks.base import Task, Update, add_to
from app.training.tasks.ds3net_recipe import Ds3NetRecipe

Role = Literal["teacher", "student"]


@dataclass(frozen=True)
class Slices:
    """Hold slices as the networks see them.

    Attributes:
        sources: in [-1, 1], B x 3 x H x W.
        target: in [-1, 1], B x 1 x H x W; background where it is withheld.
        brain: 1 in the brain, B x 1 x H x W.
    """

    sources: Tensor
    target: Tensor
    brain: Tensor

    def __len__(self) -> int:
        return len(self.sources)

    def pieces(self, count: int) -> list[Slices]:
        """Cut into at most so many parts."""
        parts = (t.chunk(count) for t in (self.sources, self.target, self.brain))
        return [Slices(*part) for part in zip(*parts, strict=True)]


class Learner(nn.Module):
    """A teacher, or a student: a generator, the projection heads of its patches, and its discriminator."""

    def __init__(self, recipe: Ds3NetRecipe) -> None:
        super().__init__()
        config = recipe.architecture
        self.generator = Ds3NetSliceGenerator(config)
        self.heads = ProjectionHeads(config)
        self.discriminator = PatchDiscriminator(recipe.ds3net.discriminator_width)

    def make(self, sources: Tensor) -> Ds3NetOutput:
        """Make the target, with the features of the layers that are compared."""
        output: Ds3NetOutput = self.generator.generator(sources)
        return output


class Ds3NetStep(Task[Ds3NetRecipe]):
    """A teacher that learns from paired slices, and a student that learns from the teacher."""

    average: Ds3NetSliceGenerator

    def __init__(self, recipe: Ds3NetRecipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        # Not channels last: of a single slice in that layout, instance norm without weights has wrong gradients (torch
        # 2.13 on processors).
        self.teacher = Learner(recipe).to(device)
        self.student = copy.deepcopy(self.teacher)
        self.average = copy.deepcopy(self.student.generator).requires_grad_(False).eval()
        self._target = MODALITIES.index(recipe.data.target)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that learn, in the order of their updates; the student's generator is what is published."""
        student, teacher = self.student, self.teacher
        networks: dict[str, nn.Module] = {"student": student.generator, "teacher": teacher.generator}
        if self.recipe.losses.contrast > 0:
            networks |= {"student_heads": student.heads, "teacher_heads": teacher.heads}
        if self.recipe.losses.adversarial > 0:
            networks |= {
                "student_discriminator": student.discriminator,
                "teacher_discriminator": teacher.discriminator,
            }
        return networks

    # ------------------------------------------------------------ stages

    @property
    def is_first_stage(self) -> bool:
        """Whether the teacher learns alone."""
        return self.progress < self.recipe.ds3net.teacher_share

    @property
    def stage_progress(self) -> float:
        """Share of the stage's own schedule that is over: t / T in the second one.

        The paper goes on from the teacher of the fifth epoch before convergence, and does not say when it converges.
        Here it does at the end of its schedule, where its rate would be 0; the epochs after the one that is taken are
        not run at all.
        """
        shape = self.recipe.ds3net
        if self.is_first_stage:
            return self.progress / shape.teacher_share * (1 - shape.stopped_early)
        return (self.progress - shape.teacher_share) / (1 - shape.teacher_share)

    def rate_factor(self, network: str) -> float:
        """Give the learning rate of a network as a multiple of the recipe's (section 3.2)."""
        rates = self.recipe.optimizer
        factor = rates.discriminator_rate if network.endswith("discriminator") else 1.0
        later_teacher = network.startswith("teacher") and not self.is_first_stage
        return factor * rates.teacher_rate if later_teacher else factor

    def step(self, source: PairedSource, step: int, pieces: int, update: Update) -> dict[str, Tensor]:
        """Learn from one batch: the teacher alone from paired slices, then both from half a batch of each kind."""
        for learner in (self.teacher, self.student):
            learner.zero_grad(set_to_none=True)
        if self.is_first_stage:
            return self._teach(self.slices(source.alone(step)), pieces, update)
        paired, unpaired = map(self.slices, source.both(step))
        return self._teach_both(paired, unpaired, pieces, update)

    def _teach(self, paired: Slices, pieces: int, update: Update) -> dict[str, Tensor]:
        """Move the teacher; the student stays equal to it, and so begins with its weights."""
        totals: dict[str, Tensor] = {}
        made = []
        for part in paired.pieces(pieces):
            losses, image = self.teacher_losses(part)
            made.append(image)
            self._add("teacher", losses, len(part) / len(paired), 1.0, totals)
        self._update("teacher", update)
        self._discriminate("teacher", torch.cat(made), paired.target, pieces, update, totals)
        self._follow()
        return totals

    def _teach_both(self, paired: Slices, unpaired: Slices, pieces: int, update: Update) -> dict[str, Tensor]:
        """Move both by L_T + (1 - t / T) L_S.

        The paper does not say which real images the student's discriminator sees: they are those of the paired half.
        """
        totals: dict[str, Tensor] = {}
        made: dict[Role, list[Tensor]] = {"teacher": [], "student": []}
        weight = L.student_share(self.stage_progress)
        for own, other in zip(paired.pieces(pieces), unpaired.pieces(pieces), strict=True):
            losses, image = self.teacher_losses(own)
            made["teacher"].append(image)
            self._add("teacher", losses, len(own) / len(paired), 1.0, totals)
            losses, image = self.student_losses(other)
            made["student"].append(image)
            self._add("student", losses, len(other) / len(unpaired), weight, totals)
        for role in made:
            self._update(role, update)
        for role, images in made.items():
            self._discriminate(role, torch.cat(images), paired.target, pieces, update, totals)
        return totals

    @torch.no_grad()
    def _follow(self) -> None:
        values = zip(self.student.parameters(), self.teacher.parameters(), strict=True)
        for own, taught in values:
            own.copy_(taught)

    # ------------------------------------------------------------ slices

    def slices(self, sample: SampledStep) -> Slices:
        """Vary slices, and part the target from its sources; intensities stay in [-1, 1]."""
        recipe = self.recipe.augmentation
        batch = vary_geometry(sample.batch.to(self.device), recipe, sample.own, BACKGROUND)
        seen = vary_intensities(batch, recipe, sample.own, BACKGROUND).clamp(-1, 1)
        target = batch.images[:, self._target : self._target + 1].clamp(-1, 1)
        sources = torch.cat([seen[:, : self._target], seen[:, self._target + 1 :]], dim=1)
        return Slices(sources, target, batch.brain)

    # ------------------------------------------------------------ losses

    def teacher_losses(self, slices: Slices) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the terms of equation 4, unweighted, and the made images, detached."""
        output = self._make(self.teacher, slices.sources)
        difficulty, losses = self._judge(self.teacher, output, slices)
        losses["pixel"] = L.pixel_loss(output.image.float(), slices.target, difficulty)
        return losses | self._contrast(self.teacher, output, difficulty), output.image.detach().float()

    def student_losses(self, slices: Slices) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the terms of equation 7, unweighted, and the made images, detached.

        The target is not looked at, and the teacher gets no gradient.
        """
        weights = self.recipe.losses
        with torch.no_grad():
            taught = self._make(self.teacher, slices.sources)
        output = self._make(self.student, slices.sources)
        difficulty, losses = self._judge(self.student, output, slices)
        if weights.image > 0:
            losses["image"] = L.pixel_loss(output.image.float(), taught.image.float(), difficulty)
        if weights.feature > 0:
            losses["feature"] = L.feature_loss(taught.features, output.features, difficulty, DISTILLED)
        return losses | self._contrast(self.student, output, difficulty), output.image.detach().float()

    def _make(self, learner: Learner, sources: Tensor) -> Ds3NetOutput:
        with self.mixed_precision():
            return learner.make(sources.contiguous())

    def _judge(self, learner: Learner, output: Ds3NetOutput, slices: Slices) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the difficulty map, 1 in the first stage and without discriminator, and the adversarial loss."""
        constant = torch.ones_like(slices.brain)
        if self.recipe.losses.adversarial == 0:
            return constant, {}
        learner.discriminator.requires_grad_(False)
        with self.mixed_precision():
            scores = learner.discriminator(output.image)
        learner.discriminator.requires_grad_(True)
        uses_map = self.recipe.ds3net.difficulty and not self.is_first_stage
        difficulty = L.difficulty_map(scores, slices.brain) if uses_map else constant
        return difficulty, {"adversarial": L.fooling_loss(scores)}

    def _contrast(self, learner: Learner, output: Ds3NetOutput, difficulty: Tensor) -> dict[str, Tensor]:
        """Compute equation 3: sources against the made image, at random places of every contrasted layer."""
        if self.recipe.losses.contrast == 0:
            return {}
        losses = []
        with self.mixed_precision():
            again = learner.generator.generator.encode_image(output.image)
            for layer in CONTRASTED:
                size = output.features[layer].shape[2:]
                places = torch.randperm(size.numel())[: self.recipe.ds3net.patches].to(self.device)
                queries, positives = (learner.heads(f[layer], layer, places) for f in (output.features, again))
                weights = L.resized_difficulty(difficulty, size).flatten(1)[:, places]
                losses.append(L.contrast_loss(queries.float(), positives.float(), weights))
        return {"contrast": torch.stack(losses).sum()}

    # ------------------------------------------------------------ gradients

    def _add(
        self, role: Role, losses: Mapping[str, Tensor], share: float, weight: float, totals: dict[str, Tensor]
    ) -> None:
        """Add the gradients of a part of the batch, and its losses to the totals."""
        weights = self.recipe.losses
        total = torch.stack([getattr(weights, name) * value for name, value in losses.items()]).sum()
        (share * weight * total).backward()  # type: ignore[no-untyped-call]
        add_to(totals, {f"{role}_{name}": value for name, value in losses.items()}, share)

    def _update(self, role: Role, update: Update) -> None:
        for name in (role, f"{role}_heads"):
            if name in self.networks:
                update(name)

    def _discriminate(
        self, role: Role, made: Tensor, real: Tensor, pieces: int, update: Update, totals: dict[str, Tensor]
    ) -> None:
        """Let a discriminator tell made from real images, unless there is none."""
        name = f"{role}_discriminator"
        if name not in self.networks:
            return
        network = self.networks[name]
        for false, true in _paired_parts(made, real, pieces):
            with self.mixed_precision():
                loss = L.discriminator_loss(network(false), network(true))
            share = len(false) / len(made)
            (share * self.recipe.losses.discriminator * loss).backward()  # type: ignore[no-untyped-call]
            add_to(totals, {name: loss}, share)
        update(name)


def _paired_parts(made: Tensor, real: Tensor, pieces: int) -> Iterator[Sequence[Tensor]]:
    return zip(made.chunk(pieces), real.chunk(pieces), strict=True)
