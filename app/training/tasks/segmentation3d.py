"""Training of the 3D segmenter that judges synthesised exams; it never teaches one."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.networks.unet3d import Segmenter3d
from app.training.checkpoint import Memoryless
from app.training.config import Recipe
from app.training.data.augmentation import vary_intensities, vary_patches
from app.training.data.patches import Patches, PatchSampler, PatchSource
from app.training.losses import dice_loss
from app.training.tasks.synthesis import BACKGROUND, Update, add_to, mixed_precision


class Segmentation3dTask(Memoryless):
    """A 3D segmenter, taught on the four real sequences as nnU-Net is: Dice and cross-entropy, deeply supervised.

    Attributes:
        average: running mean of its weights; what is validated and exported.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.judge = Segmenter3d().to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.judge).requires_grad_(False).eval()

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What learns."""
        return {"judge": self.judge}

    def step(self, source: PatchSource, step: int, pieces: int, update: Update) -> dict[str, Tensor]:
        """One batch of patches, one update; arguments and result as `SynthesisTask.step`."""
        recipe = self.recipe
        drawn, random = source.at(step)
        patches = vary_patches(drawn.to(self.device), recipe.augmentation, random, BACKGROUND)
        seen = vary_intensities(patches, recipe.augmentation, random, BACKGROUND)
        self.judge.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for part, shown in zip(patches.pieces(pieces), seen.chunk(pieces), strict=True):
            share = len(part) / len(patches)
            with mixed_precision(recipe, self.device):
                levels = self.judge.deep(shown)
            found = deep_losses(levels, part)
            loss = recipe.losses.segmentation * found["dice"] + recipe.losses.entropy * found["entropy"]
            (share * loss).backward()  # type: ignore[no-untyped-call]
            add_to(totals, found, share)
        update("judge")
        return totals

    @torch.no_grad()
    def pictures(self, sampler: PatchSampler) -> list[list[np.ndarray]]:
        """The middle slice of one patch: its sequences, the truth, and the averaged network's answer."""
        patches = sampler.draw(np.random.default_rng([self.recipe.seed, 2**32]), 1).to(self.device)
        middle = patches.images.shape[-1] // 2
        answer = self.average(patches.images).argmax(dim=1)
        real = patches.images[0, ..., middle].cpu().numpy()
        labels = [v[0, ..., middle].float().cpu().numpy() / 3 for v in (patches.labels, answer)]
        return [[*real[:2]], [*real[2:]], labels]


def deep_losses(levels: list[Tensor], patches: Patches) -> dict[str, Tensor]:
    """Dice and cross-entropy, each level counting half of the finer one; together the levels count 1.

    Args:
        levels: logits at full resolution, at half ....
    """
    shares = [0.5**level / sum(0.5**k for k in range(len(levels))) for level in range(len(levels))]
    truths = [patches.labels[:, :: 2**level, :: 2**level, :: 2**level] for level in range(len(levels))]
    each = list(zip(shares, levels, truths, strict=True))
    return {
        "dice": torch.stack([share * dice_loss(logits, truth) for share, logits, truth in each]).sum(),
        "entropy": torch.stack([share * F.cross_entropy(logits.float(), truth) for share, logits, truth in each]).sum(),
    }
