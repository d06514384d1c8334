"""Training of the light 2D segmenter, which later, frozen, teaches generators where tumours are."""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.networks.unet import Segmenter2d
from app.training.checkpoint import Memoryless
from app.training.config import Recipe
from app.training.data.augmentation import vary_slices
from app.training.data.slices import Batch, Sampler, Source
from app.training.losses import focal_tversky_loss
from app.training.tasks.synthesis import BACKGROUND, Update, add_to, mixed_precision, placed


class Segmentation2dTask(Memoryless):
    """A segmenter, taught on the four real sequences.

    Attributes:
        average: running mean of its weights; what is validated and exported.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        self.segmenter = placed(Segmenter2d(), device)
        self.average = copy.deepcopy(self.segmenter).requires_grad_(False).eval()

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What learns."""
        return {"segmenter": self.segmenter}

    def step(self, source: Source, step: int, pieces: int, update: Update) -> dict[str, Tensor]:
        """One batch, one update; arguments and result as `SynthesisTask.step`."""
        recipe = self.recipe
        drawn = source.at(step)
        batch, seen = vary_slices(drawn, recipe.augmentation, self.device, BACKGROUND)
        self.segmenter.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for part, shown in zip(batch.pieces(pieces), seen.chunk(pieces), strict=True):
            share = len(part) / len(batch)
            with mixed_precision(recipe, self.device):
                logits = self.segmenter(shown, part.views, part.types)
            tversky, entropy = focal_tversky_loss(logits, part.labels), _entropy(logits.float(), part)
            loss = recipe.losses.segmentation * tversky + recipe.losses.entropy * entropy
            (share * loss).backward()  # type: ignore[no-untyped-call]
            add_to(totals, {"tversky": tversky, "entropy": entropy}, share)
        update("segmenter")
        return totals

    @torch.no_grad()
    def pictures(self, sampler: Sampler) -> list[list[np.ndarray]]:
        """One slice: its sequences, the truth, and the averaged network's answer."""
        draw = np.random.default_rng([self.recipe.seed, 2**32])
        batch = sampler.draw(draw, draw, 1).to(self.device)
        real = batch.images[0].cpu().numpy()
        answer = self.average(batch.images, batch.views, batch.types).argmax(dim=1)
        return [[*real[:2]], [*real[2:]], [v[0].float().cpu().numpy() / 3 for v in (batch.labels, answer)]]


def _entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy over brain pixels: it moves the network while the overlap is still nearly nothing."""
    values = F.cross_entropy(logits, batch.labels, reduction="none")
    brain = batch.brain[:, 0]
    return (values * brain).sum() / brain.sum().clamp(min=1)
