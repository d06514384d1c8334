"""Training of the 3D enhancer: what would enhance, and how brightly, from the sequences beside the T1c."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from app.core.constants import CLASSES, MODALITIES
from app.networks.architectures import EnhancerConfig
from app.networks.enhancer import ENHANCING, POOLING, TARGET, Enhancer, pooled
from app.training import losses as L
from app.training.checkpoint import Memoryless
from app.training.config import Recipe
from app.training.data.augmentation import recolour_patches, vary_intensities, vary_patches
from app.training.data.patches import Patches, PatchSampler, PatchSource
from app.training.tasks.segmentation3d import deep_losses
from app.training.tasks.synthesis import BACKGROUND, Update, add_to, masked, mixed_precision

#: What is there when nothing but the T1c lacks.
_OTHERS = tuple(i for i in range(len(MODALITIES)) if i != TARGET)


class EnhancementTask(Memoryless):
    """A 3D network that learns the tumour's parts without the T1c, and how bright a T1c is where it enhances.

    No first stage teaches it: a generator makes its own training subjects' enhancement better than any other's, and
    one that learnt to correct that would learn to leave it alone. So it also serves any generator that makes T1c.

    Attributes:
        average: running mean of its weights; what is validated and exported.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        enhancer = Enhancer(EnhancerConfig(background=BACKGROUND)).to(device)
        self.enhancer: Enhancer = enhancer.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.enhancer).requires_grad_(False).eval()

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What learns."""
        return {"enhancer": self.enhancer}

    def step(self, source: PatchSource, step: int, pieces: int, update: Update) -> dict[str, Tensor]:
        """One batch of patches, one update; arguments and result as `SynthesisTask.step`."""
        recipe, weights = self.recipe, self.recipe.losses
        drawn, random = source.at(step)
        patches = vary_patches(halved(drawn.to(self.device)), recipe.augmentation, random, BACKGROUND)
        recoloured = recolour_patches(patches, recipe.augmentation, random)
        seen = vary_intensities(replace(patches, images=recoloured), recipe.augmentation, random, BACKGROUND)
        members = _members(random, recipe.data.single_missing)
        self.enhancer.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for part, shown in zip(patches.pieces(pieces), seen.chunk(pieces), strict=True):
            share = len(part) / len(patches)
            with mixed_precision(recipe, self.device):
                logits, level = self.enhancer.parts(self.enhancer.shown(shown, members))
            found = deep_losses(logits, part)
            truth = part.images[:, TARGET : TARGET + 1]
            enhancing = (part.labels[:, None] == ENHANCING).to(part.brain)
            found["enhancing"] = L.region_loss(level, truth, part.brain, enhancing)
            loss = weights.entropy * found["entropy"] + weights.dice * found["dice"]
            (share * (loss + weights.enhancing * found["enhancing"])).backward()  # type: ignore[no-untyped-call]
            add_to(totals, found, share)
        update("enhancer")
        return totals

    @torch.no_grad()
    def pictures(self, sampler: PatchSampler) -> list[list[NDArray[np.float32]]]:
        """The middle slice of one patch: the other sequences; the T1c, where it enhances, where it is expected to."""
        patches = halved(sampler.draw(np.random.default_rng([self.recipe.seed, 2**32]), 1).to(self.device))
        middle = patches.images.shape[-1] // 2
        logits, level = self.average.parts(self.average.shown(patches.images, _OTHERS))
        expected = masked(logits[0].softmax(dim=1)[:, ENHANCING : ENHANCING + 1] * level, patches.brain)
        real = patches.images[0, ..., middle].cpu().numpy()
        truth, found = ((patches.labels[0] == ENHANCING).float(), expected[0, 0])
        rows = [v[..., middle].float().cpu().numpy() for v in (truth, found)]
        return [[real[i] for i in _OTHERS], [real[TARGET], *rows]]


def halved(patches: Patches) -> Patches:
    """The patches as the enhancer looks at them: means of blocks of voxels, and of labels what most of a block is."""
    classes = F.one_hot(patches.labels, CLASSES).movedim(-1, 1).float()
    return replace(
        patches,
        images=pooled(patches.images),
        brain=(pooled(patches.brain) >= 0.5).to(patches.brain),
        labels=pooled(classes).argmax(dim=1),
        beside=patches.beside[:, :, ::POOLING, ::POOLING, ::POOLING],
    )


def _members(random: np.random.Generator, single_missing: float) -> tuple[int, ...]:
    """The sequences that are shown: all but the T1c, or only one or two of them."""
    count = len(_OTHERS) if random.random() < single_missing else int(random.integers(1, len(_OTHERS)))
    return tuple(sorted(random.choice(_OTHERS, count, replace=False).tolist()))
