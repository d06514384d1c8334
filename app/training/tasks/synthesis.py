"""Training of a generator: Algorithm 1 of the BraSyn 2025 entry, of which every part can be left out."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from app.core.constants import MODALITIES
from app.inference.device import Machine
from app.networks import new_generator
from app.networks.architectures import HF_GAN_PRESETS, HfGanConfig, UNetConfig
from app.networks.discriminator import Discriminator
from app.networks.enhancer import POOLING
from app.networks.hf_gan import HfGan
from app.networks.unet import Segmenter2d, UNetGenerator
from app.preprocessing.slices import MULTIPLE
from app.training import losses as L
from app.training.config import LossRecipe, Recipe
from app.training.data.augmentation import vary_slices
from app.training.data.cache import NORMALIZATION
from app.training.data.slices import Batch, Sampler, Source, Task
from app.training.intensity_fit import IntensityCodes

Net = TypeVar("Net", bound=nn.Module)
#: Moves one network's weights by its gradients; False where they were not finite and nothing moved.
Update = Callable[[str], bool]

assert NORMALIZATION.background is not None
#: Steps over which the mean confidence is taken.
_MEMORY = 50
T1C, ENHANCING = MODALITIES.index("t1c"), 3
BACKGROUND: float = NORMALIZATION.background


def generator_config(recipe: Recipe) -> HfGanConfig | UNetConfig:
    """The generator's shape that a recipe asks for; a confidence head has the lambda that it begins to learn with."""
    asked = recipe.network
    told, scale = asked.intensity_prior != "none", L.CONFIDENCE_WEIGHTS[0] if asked.confidence == "bounded" else 1.0
    if asked.kind == "unet":
        return UNetConfig(
            widths=asked.widths,
            background=BACKGROUND,
            intensity_code=told,
            confidence=asked.confidence,
            confidence_scale=scale,
        )
    return HfGanConfig(
        width=HF_GAN_PRESETS[asked.preset],
        background=BACKGROUND,
        intensity_code=told,
        confidence=asked.confidence,
        confidence_scale=scale,
    )


class SynthesisTask:
    """A generator, its discriminator if the recipe has one, and the frozen segmenter if it teaches.

    Attributes:
        average: running mean of the generator's weights; what is validated and exported.
        memory: numbers beside the weights that must outlive an interruption: of a `bounded` head its lambda
            (`lambda`) and the running mean of its confidence (`mean_confidence`).
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        segmenter: Segmenter2d | None = None,
        told: IntensityCodes | None = None,
    ) -> None:
        self.recipe, self.losses = recipe, recipe.losses
        self.device = device
        self.generator = placed(new_generator(generator_config(recipe)), device)
        self.average = copy.deepcopy(self.generator).requires_grad_(False).eval()
        self.discriminator: Discriminator | None = None
        if self.losses.adversarial > 0 or self.losses.classification > 0:
            self.discriminator = placed(Discriminator(recipe.network.discriminator_width), device)
        self.segmenter = None if segmenter is None else placed(segmenter, device)
        self.told = told
        self.memory: dict[str, float] = {}
        if recipe.network.confidence == "bounded":
            self.remember({"lambda": L.CONFIDENCE_WEIGHTS[0], "mean_confidence": 0.0})
        if recipe.network.frozen:
            assert self.generator.confidence is not None
            # In eval mode: the head shall learn how wrong the network is in use, without dropout.
            self.generator.requires_grad_(False).eval()
            self.generator.confidence.requires_grad_(True)

    def remember(self, memory: Mapping[str, float]) -> None:
        """Takes over what another sitting, or process, kept in `memory`."""
        self.memory = dict(memory)
        for network in (self.generator, self.average):
            if network.confidence is not None and "lambda" in memory:
                network.confidence.scale = memory["lambda"]

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What learns, in the order of its updates."""
        found: dict[str, nn.Module] = {"generator": self.generator}
        if self.discriminator is not None:
            found["discriminator"] = self.discriminator
        return found

    def prepare(self, source: Source, step: int) -> tuple[Batch, Tensor, list[Task]]:
        """The augmented batch of a step on the device, what the network sees of it, and what is made."""
        recipe = self.recipe
        drawn = source.at(step)
        tasks = source.sampler.tasks(drawn.plan, recipe.schedule.targets)
        batch, seen = vary_slices(drawn, recipe.augmentation, self.device, BACKGROUND)
        return batch, seen, tasks

    def step(self, source: Source, step: int, pieces: int, update: Update) -> dict[str, Tensor]:
        """One batch: the generator's update, then the discriminator's.

        Args:
            pieces: parts into which the batch is cut for the device's memory.
            update: moves the weights of a network by its gradients; False if they were not finite.

        Returns:
            The losses, unweighted, averaged over the batch and the sequences made.
        """
        batch, seen, tasks = self.prepare(source, step)
        for network in self.networks.values():
            network.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        parts = list(zip(batch.pieces(pieces), seen.chunk(pieces), strict=True))
        made = []
        for part, shown in parts:
            made.append(self._generate(part, shown, tasks, len(part) / len(batch), totals))
        if not update("generator"):
            return totals
        if self.memory:
            self._grow_sure(float(totals["mean_confidence"]))
        if self.discriminator is not None:
            for (part, _), images in zip(parts, made, strict=True):
                self._judge(part, images, len(part) / len(batch), totals)
            update("discriminator")
        return totals

    def _grow_sure(self, confidence: float) -> None:
        """Notes a batch's mean confidence; once the running mean passes `SURE`, lambda falls, for good."""
        mean = self.memory["mean_confidence"]
        mean += (confidence - mean) / _MEMORY
        weight = L.CONFIDENCE_WEIGHTS[1] if mean > L.SURE else self.memory["lambda"]
        self.remember({"lambda": weight, "mean_confidence": mean})

    def _generate(
        self, batch: Batch, seen: Tensor, tasks: Sequence[Task], share: float, totals: dict[str, Tensor]
    ) -> list[tuple[int, Tensor]]:
        """Adds the generator's gradients on a part of the batch; returns what was made."""
        if self.discriminator is not None:
            self.discriminator.requires_grad_(False)
        results = []
        for task in tasks:
            with mixed_precision(self.recipe, self.device):
                found, made, sure = self._losses_of(batch, seen, task)
            # One backward pass per sequence: the gradients add up while memory holds one graph only.
            _weighted(found, self.losses, share).backward()  # type: ignore[no-untyped-call]
            add_to(totals, {**found, **sure}, share / len(tasks))
            results.append((task.target, made))
        if self.discriminator is not None:
            self.discriminator.requires_grad_(True)
        return results

    def _losses_of(self, batch: Batch, seen: Tensor, task: Task) -> tuple[dict[str, Tensor], Tensor, dict[str, Tensor]]:
        """The losses of one sequence, the sequence made, detached, and what else is logged."""
        weights: LossRecipe = self.losses
        truth = batch.images[:, task.target : task.target + 1]
        with torch.set_grad_enabled(not self.recipe.network.frozen):
            features, code = self._features(seen, batch, task.target, task.members)
            made = self.generator.image(features)
        # Outside the brain the generator is free; nobody may judge what is never shown.
        shown = masked(made, batch.brain)
        doubt, sure = self._doubt(features, made, truth, batch)
        if self.recipe.network.frozen:
            return doubt, shown, {**sure, "l1": L.l1_loss(made, truth, batch.brain)}
        found = {"l1": L.l1_loss(made, truth, batch.brain), **doubt}
        if weights.ssim > 0:
            tumour = (batch.labels[:, None] > 0).float() if weights.ssim_tissue == "dual" else None
            found["ssim"] = L.ssim_loss(made, truth, batch.brain, batch.scale[:, task.target], tumour)
        if weights.enhancing > 0 and task.target == T1C:
            region = (batch.labels[:, None] == ENHANCING).float()
            found["enhancing"] = L.region_loss(made, truth, batch.brain, region)
        if self.discriminator is not None:
            patches, classes = self.discriminator(shown)
            found["adversarial"] = L.adversarial_loss(patches, real=True)
            found["classification"] = L.classification_loss(classes, task.target)
        if weights.cycle > 0 or weights.feature > 0:
            members = tuple(i for i in range(len(MODALITIES)) if i != task.second)
            there = _with(seen, task.target, shown)
            if weights.cycle > 0:
                features, second_code = self._features(there, batch, task.second, members)
                again = self.generator.image(features)
                found["cycle"] = L.l1_loss(again, batch.images[:, task.second : task.second + 1], batch.brain)
            else:
                # The bottlenecks alone are compared: nothing needs to be decoded.
                second_code = self._encoded(there, members)[0]
            if weights.feature > 0:
                assert code is not None and second_code is not None
                found["feature"] = L.feature_loss(code, second_code)
        if self.segmenter is not None and weights.tversky > 0 and batch.labelled.any():
            logits = self.segmenter(_with(batch.images, task.target, shown), batch.views, batch.types)
            found["tversky"] = L.focal_tversky_loss(logits[batch.labelled], batch.labels[batch.labelled])
        return found, shown.detach(), sure

    def _doubt(
        self, features: Tensor, made: Tensor, truth: Tensor, batch: Batch
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The confidence loss, and the mean confidence; nothing of a network without the head."""
        head = self.generator.confidence
        if head is None:
            return {}, {}
        expected = self.generator.error(features)
        loss = L.confidence_loss(made, truth, batch.brain, expected, head.scale)
        return {"confidence": loss}, {"mean_confidence": L.brain_mean(head.scale / expected, batch.brain)}

    def _features(
        self, images: Tensor, batch: Batch, target: int, members: tuple[int, ...]
    ) -> tuple[Tensor, Tensor | None]:
        """What the sequence `target` is made of, and the bottleneck where the network has one."""
        index = torch.full((len(images),), target, device=self.device)
        median = None if self.told is None else self.told.of(batch.subjects, members, target)
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

    def _judge(self, batch: Batch, made: Sequence[tuple[int, Tensor]], share: float, totals: dict[str, Tensor]) -> None:
        """Adds the discriminator's gradients on real images and on what the generator has just made."""
        assert self.discriminator is not None
        for target, image in made:
            with mixed_precision(self.recipe, self.device):
                real, classes = self.discriminator(masked(batch.images[:, target : target + 1], batch.brain))
                fake, _ = self.discriminator(image)
                judge = 0.5 * (L.adversarial_loss(real, real=True) + L.adversarial_loss(fake, real=False))
                named = L.classification_loss(classes, target)
            found = {"judge": judge, "judge_class": named}
            _weighted(found, self.losses, share).backward()  # type: ignore[no-untyped-call]
            add_to(totals, found, share / len(made))

    @torch.no_grad()
    def pictures(self, sampler: Sampler) -> list[list[np.ndarray]]:
        """Truth and what the averaged network makes of it: one slice without variation, each that it makes in turn."""
        draw = np.random.default_rng([self.recipe.seed, 2**32])
        batch = sampler.draw(draw, draw, 1).to(self.device)
        rows = []
        for target in sorted(MODALITIES.index(m) for m in self.recipe.data.makes):
            members = tuple(i for i in range(len(MODALITIES)) if i != target)
            present = self._present(1, members)
            index = torch.full((1,), target, device=self.device)
            median = None if self.told is None else self.told.of(batch.subjects, members, target)
            made = self.average(batch.images, present, index, batch.views, median, members=members)
            shown = masked(made.float(), batch.brain)[0, 0]
            rows.append([batch.images[0, target].cpu().numpy(), shown.cpu().numpy()])
        return rows


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def mixed_precision(recipe: Recipe, device: torch.device) -> torch.autocast:
    """The context in which networks run."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision_of(recipe, device) == torch.bfloat16)


def precision_of(recipe: Recipe, device: torch.device) -> torch.dtype:
    """Bfloat16 where the recipe and the device agree to it, else float32."""
    wanted, depth = recipe.schedule.precision, recipe.data.patch[0] // (POOLING if recipe.task == "enhancement" else 1)
    # On processors, bfloat16 weight gradients of 3D convolutions are wrong where an image is two voxels deep (oneDNN as
    # of torch 2.13 leaves memory uninitialised). TumourSegmenter and enhancer halve their patches four times: they get there from
    # 16 or 32.
    if device.type == "cpu" and recipe.task in ("judging", "enhancement") and depth <= 2 * MULTIPLE:
        return torch.float32
    native = has_bf16(device) if wanted == "auto" else wanted == "bf16"
    return torch.bfloat16 if native else torch.float32


@functools.cache
def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 natively."""
    machine = Machine.probe()
    return machine.gpu_bf16 if device.type == "cuda" else machine.cpu_bf16


def placed(network: Net, device: torch.device) -> Net:
    """The network on a device, in the layout that convolutions like best."""
    return network.to(device).to(memory_format=torch.channels_last)  # type: ignore[no-any-return,call-overload]


def _weighted(found: Mapping[str, Tensor], weights: LossRecipe, share: float) -> Tensor:
    return share * torch.stack([getattr(weights, name) * value for name, value in found.items()]).sum()


def add_to(totals: dict[str, Tensor], found: Mapping[str, Tensor], share: float) -> None:
    """Adds `share` of each loss to its total."""
    for name, value in found.items():
        totals[name] = totals.get(name, torch.zeros_like(value)) + share * value.detach()


def masked(images: Tensor, brain: Tensor) -> Tensor:
    """Background outside the brain, as every finished volume has it."""
    return images * brain + BACKGROUND * (1 - brain)


def _with(images: Tensor, index: int, replacement: Tensor) -> Tensor:
    parts = [replacement.to(images) if i == index else images[:, i : i + 1] for i in range(images.shape[1])]
    return torch.cat(parts, dim=1)
