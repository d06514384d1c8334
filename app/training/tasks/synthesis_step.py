"""Networks of the task `synthesis` and one step: Algorithm 1 of the BraSyn 2025 entry.

Every part of it can be left out by the recipe.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from app.core.constants import MODALITIES
from app.networks import new_generator
from app.networks.discriminator import Discriminator
from app.networks.enhancer import ENHANCING
from app.networks.hf_gan import HfGan
from app.networks.unet import Segmenter2d, UNetGenerator
from app.training import losses as L
from app.training.data.slices import Batch, SampledStep, Source
from app.training.data.unpaired import PairedSource
from app.training.fits.intensity import IntensityCodes
from app.training.optimization import LossScale
from app.training.placement import placed
from app.training.tasks.base import Task, Update, add_to, masked
from app.training.tasks.synthesis_batches import cut_close, vary_slices
from app.training.tasks.synthesis_jobs import Job, MixedJob, Pass, draw_jobs, draw_mixed_jobs, one_hot
from app.training.tasks.synthesis_recipe import SynthesisLosses, SynthesisRecipe, generator_config

#: Numbers of a `bounded` confidence head.
_STATE = ("lambda", "mean_confidence")
#: Steps over which the mean confidence is taken.
_CONFIDENCE_STEPS = 50
T1C = MODALITIES.index("t1c")
#: Begins the names of losses that exams which lack a sequence have as well.
_UNPAIRED = "unpaired_"

AnyJob = Job | MixedJob


@dataclass(frozen=True)
class Part:
    """As much of a batch as memory holds, and what is made of it.

    Attributes:
        batch: the truth.
        seen: B x 4 x H x W, what the network sees of it.
        jobs: what it makes.
        share: of the whole batch.
        share_of_kind: of what it shows of complete exams, or of the others.
        complete: whether its exams have all sequences.
    """

    batch: Batch
    seen: Tensor
    jobs: tuple[AnyJob, ...]
    share: float
    share_of_kind: float
    complete: bool = True


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
            shape = recipe.network
            self.discriminator = placed(Discriminator(shape.discriminator_width, shape.discriminator), device)
        self.segmenter = None if segmenter is None else placed(segmenter, device)
        self.codes = codes
        self._state: dict[str, float] = {}
        self.loss_scale = LossScale() if self.precision == torch.float16 else None
        if recipe.network.confidence == "bounded":
            self.restore_task_state({"lambda": L.CONFIDENCE_WEIGHTS[0], "mean_confidence": 0.0})
        if recipe.network.frozen:
            assert self.generator.confidence is not None
            # In eval mode: the head shall learn how wrong the network is in use, without dropout.
            self.generator.requires_grad_(False).eval()
            self.generator.confidence.requires_grad_(True)

    @property
    def task_state(self) -> Mapping[str, float]:
        """Of a `bounded` confidence head its lambda and mean confidence; of float16 the scale of its losses."""
        scale = self.loss_scale
        return self._state if scale is None else {**self._state, **scale.state}

    def restore_task_state(self, values: Mapping[str, float]) -> None:
        """Take over the numbers of an earlier run or of another process."""
        self._state = {k: v for k, v in values.items() if k in _STATE}
        if self.loss_scale is not None:
            self.loss_scale.restore(values)
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

    def prepare(self, source: Source | PairedSource, step: int) -> tuple[Batch, Tensor, Sequence[AnyJob]]:
        """Give a step's batch on the device, the images that the network sees, and its jobs."""
        sample = source.at(step) if isinstance(source, Source) else source.alone(step)
        return self._prepared(sample, self._draw_jobs(sample))

    def _prepared(self, sample: SampledStep, jobs: Sequence[AnyJob]) -> tuple[Batch, Tensor, Sequence[AnyJob]]:
        batch, seen = vary_slices(
            sample.batch.to(self.device), self.recipe.augmentation, self.recipe.network.neighbours, sample.own,
            self.recipe.network.slices,
        )  # fmt: skip
        if self.recipe.data.close:
            batch, seen = cut_close(batch, seen, self.generator.config.multiple, sample.own)
        return batch, seen, jobs

    def _draw_jobs(self, sample: SampledStep) -> Sequence[AnyJob]:
        data, count = self.recipe.data, self.recipe.schedule.targets_per_batch
        if data.availability == "batch":
            return draw_jobs(sample.plan, data, count)
        return draw_mixed_jobs(sample.own, data, count, len(sample.batch))

    def _parts(self, source: Source | PairedSource, step: int, pieces: int) -> list[Part]:
        """Cuts a step's batch; once the averaged network knows something, a share of it lacks a sequence."""
        schedule, lacking = self.recipe.schedule, self.recipe.data.lacking
        if isinstance(source, Source) or lacking is None or self.progress < schedule.unpaired_from:
            return _cut(*self.prepare(source, step), pieces)
        paired, unpaired = source.both(step)
        jobs = draw_jobs(unpaired.plan, self.recipe.data, schedule.targets_per_batch, MODALITIES.index(lacking))
        whole = _cut(*self._prepared(paired, self._draw_jobs(paired)), pieces)
        others = [replace(part, complete=False) for part in _cut(*self._prepared(unpaired, jobs), pieces)]
        count = len(paired.batch) + len(unpaired.batch)
        return [replace(part, share=len(part.batch) / count) for part in (*whole, *others)]

    def step(self, source: Source | PairedSource, step: int, pieces: int, update: Update) -> dict[str, Tensor]:
        """Learn from one batch: the generator's update, then the discriminator's, once or for each sequence made.

        Returns:
            The losses, unweighted, averaged over the batch and the sequences made. Those of exams that lack a sequence
            are averaged by themselves; their names begin with `unpaired_` or `distilled`.
        """
        parts = self._parts(source, step, pieces)
        totals: dict[str, Tensor] = {}
        each, count = self.recipe.schedule.update == "sequence", len(parts[0].jobs)
        turns = [[replace(p, jobs=(p.jobs[i],)) for p in parts] for i in range(count)] if each else [parts]
        moved = [self._learn(turn, 1 / count, update, totals) for turn in turns]
        if "lambda" in self._state and all(moved):
            self._grow_sure(float(totals["mean_confidence"]))
        return totals

    def _learn(self, parts: Sequence[Part], weight: float, update: Update, totals: dict[str, Tensor]) -> bool:
        """Moves the generator, then the discriminator; False where the generator did not move.

        Args:
            weight: of each sequence in the totals.
        """
        for network in self.networks.values():
            network.zero_grad(set_to_none=True)
        results = [self._generate(part, weight, totals) for part in parts]
        if not self._move("generator", update):
            return False
        if self.discriminator is not None:
            for part, images in zip(parts, results, strict=True):
                # Of what an exam lacks no real image is there.
                if part.complete:
                    self._discriminate(part, images, weight, totals)
            self._move("discriminator", update)
        return True

    def _move(self, name: str, update: Update) -> bool:
        """Updates a network; in float16 by gradients of losses that were scaled up."""
        if self.loss_scale is None:
            return update(name)
        self.loss_scale.unscale(self.networks[name])
        moved = update(name)
        self.loss_scale.adapt(moved)
        return moved

    def _backward(self, loss: Tensor) -> None:
        scaled = loss if self.loss_scale is None else self.loss_scale.value * loss
        scaled.backward()  # type: ignore[no-untyped-call]

    def _grow_sure(self, confidence: float) -> None:
        """Notes a batch's mean confidence; once the running mean passes `SURE`, lambda falls, for good."""
        mean = self._state["mean_confidence"]
        mean += (confidence - mean) / _CONFIDENCE_STEPS
        weight = L.CONFIDENCE_WEIGHTS[1] if mean > L.SURE else self._state["lambda"]
        self.restore_task_state({**self.task_state, "lambda": weight, "mean_confidence": mean})

    def _generate(self, part: Part, weight: float, totals: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Adds the generator's gradients on a part of the batch; returns what it made, with the sequences' indices."""
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        results = []
        for job in part.jobs:
            with self.mixed_precision():
                compute = self._losses_of if part.complete else self._losses_of_incomplete
                losses, made, sure = compute(part.batch, part.seen, job)
            # One backward pass per sequence: the gradients add up while memory holds one graph only.
            self._backward(_weighted(losses, self.losses, part.share))
            add_to(totals, {**losses, **sure}, part.share_of_kind * weight)
            results.append(made)
        if self.discriminator is not None:
            self.discriminator.requires_grad_(True)
        return results

    def _losses_of(
        self, batch: Batch, seen: Tensor, job: AnyJob
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor], dict[str, Tensor]]:
        """The losses of one sequence, its indices and images, detached, and what else is logged."""
        weights, first = self.losses, job.first_pass(len(batch), self.device)
        truth, slices = _pick(batch.images, first.target), len(batch) // len(seen)
        with torch.set_grad_enabled(not self.recipe.network.frozen):
            own = first if slices == 1 else job.first_pass(len(seen), self.device)
            features, code = self._features(seen, batch.every(slices), own)
            image = self.generator.image(features).reshape(truth.shape)
        shown = self._shown(image, batch)
        doubt, sure = self._doubt(features, image, truth, batch)
        if self.recipe.network.frozen:
            return doubt, (first.target, shown), {**sure, "l1": L.l1_loss(image, truth, batch.brain)}
        losses = {"l1": self._l1(image, truth, batch), **doubt}
        if weights.ssim > 0:
            losses["ssim"] = self._ssim(image, truth, batch, first)
        if weights.enhancing > 0 and T1C in job.targets:
            region = (batch.labels == ENHANCING) & (first.target == T1C)[:, None, None]
            losses["enhancing"] = L.region_loss(image, truth, batch.brain, region[:, None].float())
        if self.discriminator is not None:
            patches, classes = self.discriminator(shown)
            losses["adversarial"] = L.adversarial_loss(patches, real=True)
            losses["classification"] = L.classification_loss(classes, first.target)
        if weights.cycle > 0 or weights.feature > 0:
            losses |= self._losses_of_second(batch, _with(seen, first.target, shown), job, code)
        if self.segmenter is not None and weights.tversky > 0 and batch.labelled.any():
            logits = self.segmenter(_with(batch.images, first.target, shown), batch.views, batch.types)
            tversky = L.TVERSKY_LOSSES[weights.tversky_form]
            losses["tversky"] = tversky(logits[batch.labelled], batch.labels[batch.labelled])
        return losses, (first.target, shown.detach()), sure

    def _losses_of_incomplete(
        self, batch: Batch, seen: Tensor, job: AnyJob
    ) -> tuple[dict[str, Tensor], tuple[Tensor, Tensor], dict[str, Tensor]]:
        """As `_losses_of`, of exams that lack a sequence: what nobody has scanned the averaged network teaches."""
        first, lacking = job.first_pass(len(batch), self.device), self.recipe.data.lacking
        assert lacking is not None
        features, _ = self._features(seen, batch, first)
        image = self.generator.image(features)
        made = first.target, image.detach()
        if job.targets != {MODALITIES.index(lacking)}:
            truth = _pick(batch.images, first.target)
            losses = {f"{_UNPAIRED}l1": self._l1(image, truth, batch)}
            if self.losses.ssim > 0:
                losses[f"{_UNPAIRED}ssim"] = self._ssim(image, truth, batch, first)
            return losses, made, {}
        with torch.no_grad():
            everything = replace(first, present=1 - one_hot(first.target), members=None)
            taught, _ = self._features(batch.images, batch, everything, self.average)
            image_taught = self.average.image(taught)
        losses = {"distilled": L.l1_loss(image, image_taught, batch.brain)}
        if self.losses.distilled_feature > 0:
            losses["distilled_feature"] = L.feature_loss(features, taught)
        return losses, made, {}

    def _losses_of_second(self, batch: Batch, seen: Tensor, job: AnyJob, code: Tensor | None) -> dict[str, Tensor]:
        """The losses of the second pass.

        Args:
            seen: as the first pass saw it, with its result.
            code: the first pass's bottleneck.
        """
        second, losses = job.second_pass(len(batch), self.device), {}
        if self.losses.cycle > 0:
            features, second_code = self._features(seen, batch, second)
            again = self.generator.image(features)
            losses["cycle"] = self._l1(again, _pick(batch.images, second.target), batch)
        else:
            # The bottlenecks alone are compared: nothing needs to be decoded.
            second_code = self._encoded(seen, second)[0]
        if self.losses.feature > 0:
            assert code is not None and second_code is not None
            losses["feature"] = L.feature_loss(code, second_code)
        return losses

    def _shown(self, image: Tensor, batch: Batch) -> Tensor:
        """What is seen of a result: unless the recipe says otherwise, background outside the brain."""
        # Where L1 counts the brain alone the generator is free outside; nobody may judge what is never shown.
        return masked(image, batch.brain) if self.losses.mask_background else image.float()

    def _l1(self, image: Tensor, truth: Tensor, batch: Batch) -> Tensor:
        if self.losses.pixels == "brain":
            return L.l1_loss(image, truth, batch.brain)
        return L.mae_loss(self._shown(image, batch), truth)

    def _ssim(self, image: Tensor, truth: Tensor, batch: Batch, first: Pass) -> Tensor:
        scale = batch.scale[torch.arange(len(batch), device=self.device), first.target]
        if self.losses.ssim_tissue == "whole":
            return L.ssim_loss(image, truth, batch.brain, scale)
        loss = L.dual_ssim_loss if self.losses.ssim_tissue == "sum" else L.ssim_loss
        return loss(image, truth, batch.brain, scale, (batch.labels[:, None] > 0).float())

    def _doubt(
        self, features: Tensor, image: Tensor, truth: Tensor, batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The confidence loss, and the mean confidence; nothing of a network without the head."""
        head = self.generator.confidence
        if head is None:
            return {}, {}
        expected = self.generator.error(features).reshape(truth.shape)
        loss = L.confidence_loss(image, truth, batch.brain, expected, head.scale)
        return {"confidence": loss}, {"mean_confidence": L.brain_mean(head.scale / expected, batch.brain)}

    def _features(
        self, images: Tensor, batch: Batch, plan: Pass, network: HfGan | UNetGenerator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What a pass of a network (the one that learns) makes its sequence of, and the bottleneck where it has one."""
        median, network = self._medians(batch, plan), network or self.generator
        if isinstance(network, UNetGenerator):
            return network.features(_channels_last(images), plan.present, plan.target, batch.views, median), None
        fused, skips = network.encode(_channels_last(images), plan.present, plan.members)
        return network.features_of(fused, skips, plan.target, batch.views, median), fused

    def _medians(self, batch: Batch, plan: Pass) -> Tensor | None:
        return None if self.codes is None else self.codes.of(batch.subjects, plan.target)

    def _encoded(self, images: Tensor, plan: Pass) -> tuple[Tensor, list[Tensor]]:
        """The bottleneck and the skips of a network that has its own encoders."""
        generator = self.generator
        assert isinstance(generator, HfGan)
        return generator.encode(_channels_last(images), plan.present, plan.members)

    def _discriminate(
        self, part: Part, images: Sequence[tuple[Tensor, Tensor]], weight: float, totals: dict[str, Tensor]
    ) -> None:
        """Adds the discriminator's gradients on real images and on what the generator has just made."""
        assert self.discriminator is not None
        for target, image in images:
            with self.mixed_precision():
                real, classes = self.discriminator(self._shown(_pick(part.batch.images, target), part.batch))
                fake, _ = self.discriminator(image)
                opinion = 0.5 * (L.adversarial_loss(real, real=True) + L.adversarial_loss(fake, real=False))
                named = L.classification_loss(classes, target)
            losses = {"discriminator": opinion, "discriminator_class": named}
            # It sees complete exams alone: they are its whole batch.
            self._backward(_weighted(losses, self.losses, part.share_of_kind))
            add_to(totals, losses, part.share_of_kind * weight)


def _cut(batch: Batch, seen: Tensor, jobs: Sequence[AnyJob], pieces: int) -> list[Part]:
    """A batch in at most so many parts."""
    per_job = [job.pieces(pieces) for job in jobs]
    return [
        Part(part, shown, tuple(own[i] for own in per_job), len(part) / len(batch), len(part) / len(batch))
        for i, (part, shown) in enumerate(
            zip(batch.pieces(pieces, len(batch) // len(seen)), seen.chunk(pieces), strict=True)
        )
    ]


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _weighted(losses: Mapping[str, Tensor], weights: SynthesisLosses, share: float) -> Tensor:
    each = [getattr(weights, name.removeprefix(_UNPAIRED)) * value for name, value in losses.items()]
    return share * torch.stack(each).sum()


def _pick(images: Tensor, sequences: Tensor) -> Tensor:
    """One sequence of each sample, B x 1 x H x W."""
    index = sequences[:, None, None, None].expand(-1, 1, *images.shape[2:])
    return images.gather(1, index)


def _with(images: Tensor, sequences: Tensor, replacement: Tensor) -> Tensor:
    """The images with one sequence of each sample replaced."""
    return torch.where(one_hot(sequences)[:, :, None, None] > 0, replacement.to(images), images)
