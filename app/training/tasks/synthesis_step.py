"""Networks of the task `synthesis` and one step: Algorithm 1 of the BraSyn 2025 entry.

Every part of it can be left out by the recipe.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from app.core.constants import MODALITIES
from app.networks import new_generator
from app.networks.discriminator import Discriminator
from app.networks.enhancer import ENHANCING
from app.networks.hf_gan import HfGan
from app.networks.unet import Segmenter2d, UNetGenerator
from app.preprocessing.normalization import BACKGROUND
from app.training import losses as L
from app.training.data.augmentation import fade_tumours, recolour_slices, vary_geometry, vary_intensities
from app.training.data.slices import Batch, Source
from app.training.intensity_fit import IntensityCodes
from app.training.tasks.base import Task, Update, add_to, masked, placed
from app.training.tasks.synthesis_recipe import SynthesisData, SynthesisLosses, SynthesisRecipe, generator_config

#: Steps over which the mean confidence is taken.
_CONFIDENCE_STEPS = 50
T1C = MODALITIES.index("t1c")


@dataclass(frozen=True)
class Job:
    """What one pass makes from what.

    Attributes:
        target: index of the sequence to make.
        members: indices of the sequences that are present.
        second: index of the sequence that the second pass drops and makes; it sees the first's result.
    """

    target: int
    members: tuple[int, ...]
    second: int


def draw_jobs(plan: np.random.Generator, data: SynthesisData, count: int) -> list[Job]:
    """Draw `count` different sequences to make, in challenge order.

    Each comes with the present sequences and a second one.
    """
    targets = [MODALITIES.index(m) for m in data.targets]
    return [_job(plan, data, target) for target in sorted(plan.choice(targets, count, replace=False).tolist())]


def _job(plan: np.random.Generator, data: SynthesisData, target: int) -> Job:
    others = [i for i in range(len(MODALITIES)) if i != target]
    count = 3 if plan.random() < data.single_missing else int(plan.integers(1, 3))
    members = tuple(sorted(plan.choice(others, count, replace=False).tolist()))
    return Job(target, members, int(plan.choice(others)))


class SynthesisStep(Task[SynthesisRecipe]):
    """A generator, the discriminator if there is one, the frozen segmenter if it teaches.

    Args:
        codes: true medians of all training subjects, for a network with intensity encoding.
    """

    average: HfGan | UNetGenerator

    def __init__(
        self,
        recipe: SynthesisRecipe,
        device: torch.device,
        segmenter: Segmenter2d | None = None,
        codes: IntensityCodes | None = None,
    ) -> None:
        super().__init__(recipe, device)
        self.losses = recipe.losses
        self.generator = placed(new_generator(generator_config(recipe)), device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.discriminator: Discriminator | None = None
        if self.losses.has_discriminator:
            self.discriminator = placed(Discriminator(recipe.network.discriminator_width), device)
        self.segmenter = None if segmenter is None else placed(segmenter, device)
        self.codes = codes
        self._state: dict[str, float] = {}
        if recipe.network.confidence == "bounded":
            self.restore_task_state({"lambda": L.CONFIDENCE_WEIGHTS[0], "mean_confidence": 0.0})
        if recipe.network.frozen:
            assert self.generator.confidence is not None
            # In eval mode: the head shall learn how wrong the network is in use, without dropout.
            self.generator.requires_grad_(False).eval()
            self.generator.confidence.requires_grad_(True)

    @property
    def task_state(self) -> Mapping[str, float]:
        """Of a `bounded` confidence head its lambda (`lambda`) and the running mean of its confidence."""
        return self._state

    def restore_task_state(self, values: Mapping[str, float]) -> None:
        """Take over the numbers of an earlier run or of another process."""
        self._state = dict(values)
        for network in (self.generator, self.average):
            if network.confidence is not None and "lambda" in values:
                network.confidence.scale = values["lambda"]

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The networks that learn, in the order of their updates."""
        networks: dict[str, nn.Module] = {"generator": self.generator}
        if self.discriminator is not None:
            networks["discriminator"] = self.discriminator
        return networks

    def prepare(self, source: Source, step: int) -> tuple[Batch, Tensor, list[Job]]:
        """Give a step's batch on the device, the images that the network sees, and its jobs."""
        recipe, sample = self.recipe.augmentation, source.at(step)
        jobs = draw_jobs(sample.plan, self.recipe.data, self.recipe.schedule.targets_per_batch)
        batch = vary_geometry(sample.batch.to(self.device), recipe, sample.own, BACKGROUND)
        shown = batch
        if recipe.fade > 0:
            shown = replace(shown, images=fade_tumours(shown, recipe.fade, sample.own))
        if max(recipe.recolour_t1n, recipe.recolour_t2f) > 0:
            shown = replace(shown, images=recolour_slices(shown, recipe, sample.own, BACKGROUND))
        return batch, vary_intensities(shown, recipe, sample.own, BACKGROUND), jobs

    def step(self, source: Source, step: int, pieces: int, update: Update) -> dict[str, Tensor]:
        """Learn from one batch: the generator's update, then the discriminator's.

        Returns:
            The losses, unweighted, averaged over the batch and the sequences made.
        """
        batch, seen, jobs = self.prepare(source, step)
        for network in self.networks.values():
            network.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        parts = list(zip(batch.pieces(pieces), seen.chunk(pieces), strict=True))
        results = []
        for part, shown in parts:
            results.append(self._generate(part, shown, jobs, len(part) / len(batch), totals))
        if not update("generator"):
            return totals
        if self.task_state:
            self._grow_sure(float(totals["mean_confidence"]))
        if self.discriminator is not None:
            for (part, _), images in zip(parts, results, strict=True):
                self._discriminate(part, images, len(part) / len(batch), totals)
            update("discriminator")
        return totals

    def _grow_sure(self, confidence: float) -> None:
        """Notes a batch's mean confidence; once the running mean passes `SURE`, lambda falls, for good."""
        mean = self.task_state["mean_confidence"]
        mean += (confidence - mean) / _CONFIDENCE_STEPS
        weight = L.CONFIDENCE_WEIGHTS[1] if mean > L.SURE else self.task_state["lambda"]
        self.restore_task_state({"lambda": weight, "mean_confidence": mean})

    def _generate(
        self, batch: Batch, seen: Tensor, jobs: Sequence[Job], share: float, totals: dict[str, Tensor]
    ) -> list[tuple[int, Tensor]]:
        """Adds the generator's gradients on a part of the batch; returns what it made."""
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        results = []
        for job in jobs:
            with self.mixed_precision():
                losses, image, sure = self._losses_of(batch, seen, job)
            # One backward pass per sequence: the gradients add up while memory holds one graph only.
            _weighted(losses, self.losses, share).backward()  # type: ignore[no-untyped-call]
            add_to(totals, {**losses, **sure}, share / len(jobs))
            results.append((job.target, image))
        if self.discriminator is not None:
            self.discriminator.requires_grad_(True)
        return results

    def _losses_of(self, batch: Batch, seen: Tensor, job: Job) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """The losses of one sequence, the image, detached, and what else is logged."""
        weights = self.losses
        truth = batch.images[:, job.target : job.target + 1]
        with torch.set_grad_enabled(not self.recipe.network.frozen):
            features, code = self._features(seen, batch, job.target, job.members)
            image = self.generator.image(features)
        # Outside the brain the generator is free; nobody may judge what is never shown.
        shown = masked(image, batch.brain)
        doubt, sure = self._doubt(features, image, truth, batch)
        if self.recipe.network.frozen:
            return doubt, shown, {**sure, "l1": L.l1_loss(image, truth, batch.brain)}
        losses = {"l1": L.l1_loss(image, truth, batch.brain), **doubt}
        if weights.ssim > 0:
            tumour = (batch.labels[:, None] > 0).float() if weights.ssim_tissue == "dual" else None
            losses["ssim"] = L.ssim_loss(image, truth, batch.brain, batch.scale[:, job.target], tumour)
        if weights.enhancing > 0 and job.target == T1C:
            region = (batch.labels[:, None] == ENHANCING).float()
            losses["enhancing"] = L.region_loss(image, truth, batch.brain, region)
        if self.discriminator is not None:
            patches, classes = self.discriminator(shown)
            losses["adversarial"] = L.adversarial_loss(patches, real=True)
            losses["classification"] = L.classification_loss(classes, job.target)
        if weights.cycle > 0 or weights.feature > 0:
            members = tuple(i for i in range(len(MODALITIES)) if i != job.second)
            there = _with(seen, job.target, shown)
            if weights.cycle > 0:
                features, second_code = self._features(there, batch, job.second, members)
                again = self.generator.image(features)
                losses["cycle"] = L.l1_loss(again, batch.images[:, job.second : job.second + 1], batch.brain)
            else:
                # The bottlenecks alone are compared: nothing needs to be decoded.
                second_code = self._encoded(there, members)[0]
            if weights.feature > 0:
                assert code is not None and second_code is not None
                losses["feature"] = L.feature_loss(code, second_code)
        if self.segmenter is not None and weights.tversky > 0 and batch.labelled.any():
            logits = self.segmenter(_with(batch.images, job.target, shown), batch.views, batch.types)
            losses["tversky"] = L.focal_tversky_loss(logits[batch.labelled], batch.labels[batch.labelled])
        return losses, shown.detach(), sure

    def _doubt(
        self, features: Tensor, image: Tensor, truth: Tensor, batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The confidence loss, and the mean confidence; nothing of a network without the head."""
        head = self.generator.confidence
        if head is None:
            return {}, {}
        expected = self.generator.error(features)
        loss = L.confidence_loss(image, truth, batch.brain, expected, head.scale)
        return {"confidence": loss}, {"mean_confidence": L.brain_mean(head.scale / expected, batch.brain)}

    def _features(
        self, images: Tensor, batch: Batch, target: int, members: tuple[int, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """What the sequence `target` is made of, and the bottleneck where the network has one."""
        index = torch.full((len(images),), target, device=self.device)
        median = None if self.codes is None else self.codes.of(batch.subjects, target)
        if isinstance(self.generator, UNetGenerator):
            present = self._present(len(images), members)
            return self.generator.features(_channels_last(images), present, index, batch.views, median), None
        fused, skips = self._encoded(images, members)
        return self.generator.features_of(fused, skips, index, batch.views, median), fused

    def _encoded(self, images: Tensor, members: tuple[int, ...]) -> tuple[Tensor, list[Tensor]]:
        """The bottleneck and the skips of a network that has its own encoders."""
        generator = self.generator
        assert isinstance(generator, HfGan)
        return generator.encode(_channels_last(images), self._present(len(images), members), members)

    def _present(self, count: int, members: tuple[int, ...]) -> Tensor:
        """1 for each sequence among `members`, else 0 (`count` x 4)."""
        present = torch.zeros(count, len(MODALITIES), device=self.device)
        present[:, list(members)] = 1
        return present

    def _discriminate(
        self, batch: Batch, images: Sequence[tuple[int, Tensor]], share: float, totals: dict[str, Tensor]
    ) -> None:
        """Adds the discriminator's gradients on real images and on what the generator has just made."""
        assert self.discriminator is not None
        for target, image in images:
            with self.mixed_precision():
                real, classes = self.discriminator(masked(batch.images[:, target : target + 1], batch.brain))
                fake, _ = self.discriminator(image)
                opinion = 0.5 * (L.adversarial_loss(real, real=True) + L.adversarial_loss(fake, real=False))
                named = L.classification_loss(classes, target)
            losses = {"discriminator": opinion, "discriminator_class": named}
            _weighted(losses, self.losses, share).backward()  # type: ignore[no-untyped-call]
            add_to(totals, losses, share / len(images))


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _weighted(losses: Mapping[str, Tensor], weights: SynthesisLosses, share: float) -> Tensor:
    return share * torch.stack([getattr(weights, name) * value for name, value in losses.items()]).sum()


def _with(images: Tensor, index: int, replacement: Tensor) -> Tensor:
    parts = [replacement.to(images) if i == index else images[:, i : i + 1] for i in range(images.shape[1])]
    return torch.cat(parts, dim=1)
