"""Training of the 3D enhancer: where a T1c would enhance, and how brightly."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor, nn

from app.core.constants import CLASSES, MODALITIES
from app.core.errors import UsageError
from app.data.cases import Case
from app.inference.synthesizer import Synthesizer
from app.networks.architectures import EnhancerConfig
from app.networks.enhancer import ENHANCING, POOLING, TARGET, Blinded, Enhancer, pooled
from app.preprocessing.normalization import BACKGROUND
from app.preprocessing.slices import MULTIPLE
from app.registry.checkpoints import load_refiner
from app.registry.manifest import Entry, read_manifest, spec_as
from app.registry.spec import GeneratorSpec, RefinerSpec
from app.training import losses as L
from app.training import validation
from app.training.config import LossRecipe, Recipe, WindowRecipe
from app.training.data.cache import CachedSubject
from app.training.data.patches import Patches, PatchSampler, PatchSource
from app.training.data.sections import AugmentationRecipe, MissingData, PatchData, RecolouringRecipe, check_rules
from app.training.data.splits import labelled_subjects
from app.training.data.variation.augmentation import recolour_patches, vary_intensities, vary_patches
from app.training.placement import choose_volume_precision, placed3d
from app.training.promotion.request import ExportRequest, check_no_specialist
from app.training.promotion.writing import promote_refiner
from app.training.tasks.base import Task, TrainingContext, Update, add_to, masked
from app.training.tasks.segmentation3d import deep_losses

#: What is there when nothing but the T1c lacks.
_OTHERS = tuple(i for i in range(len(MODALITIES)) if i != TARGET)

_CONFIG = EnhancerConfig(background=BACKGROUND)


class EnhancementData(PatchData, MissingData):
    """Choice of 3D patches, and of the sequences that are missing beside the T1c."""

    @model_validator(mode="after")
    def _check_enhancement(self) -> Self:
        # It looks at half the resolution, where a single voxel in its deepest layer could not be normalised.
        double = 2 * MULTIPLE
        check_rules(
            {
                f"data.patch of the task enhancement must be three multiples of {double}": all(
                    n % double == 0 for n in self.patch
                ),
                f"data.patch of the task enhancement must be longer than {double} in one direction": max(self.patch)
                > double,
            }
        )
        return self


class EnhancementAugmentation(AugmentationRecipe, RecolouringRecipe):
    """Reach of the random variation of patches."""


class EnhancementLosses(LossRecipe):
    """Weights of the losses.

    Attributes:
        entropy: cross-entropy of the tumour's parts: it moves a network whose overlap is nothing yet.
        dice: one minus the Dice of these parts.
        enhancing: mean absolute error of the T1c where it enhances, as a share of the brain's.
    """

    entropy: float = 1.0
    dice: float = 0.0
    enhancing: float = 0.0


class EnhancementRecipe(Recipe):
    """One training of the enhancer.

    On a processor, patches less than 96 deep are computed in float32.
    """

    task: Literal["enhancement"] = "enhancement"
    data: EnhancementData = EnhancementData()
    augmentation: EnhancementAugmentation = EnhancementAugmentation()
    losses: EnhancementLosses = EnhancementLosses()
    refinement: WindowRecipe = WindowRecipe()


class EnhancementTask(Task[EnhancementRecipe]):
    """A 3D network that learns tumour parts and enhancement without the T1c.

    No first stage teaches it: a generator makes its own training subjects' enhancement better than any other's, and
    one that learnt to correct that would learn to leave it alone. So it also serves any generator that makes T1c.
    """

    recipe_type = EnhancementRecipe
    kind = "refiner"
    export_hint = " --refines GENERATOR"

    average: Enhancer

    def __init__(self, recipe: EnhancementRecipe, device: torch.device) -> None:
        super().__init__(recipe, device)
        self.enhancer = placed3d(Enhancer(_CONFIG), device)
        self.average = copy.deepcopy(self.enhancer).requires_grad_(False).eval()

    @classmethod
    def usable(cls, subjects: list[CachedSubject]) -> list[CachedSubject]:
        """Choose the subjects with a segmentation."""
        return labelled_subjects(subjects)

    @classmethod
    def read_weights(cls, entry: Entry) -> nn.Module:
        """Read an enhancer."""
        return load_refiner(entry)

    def new_source(self, context: TrainingContext[EnhancementRecipe]) -> PatchSource:
        """Build what batches of patches come from."""
        recipe = self.recipe
        sampler = PatchSampler(context.subjects, recipe.data, BACKGROUND, seed=recipe.seed, rank=context.group.rank)
        return PatchSource(sampler, recipe.schedule.batch_size, context.prefetch)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The network that learns."""
        return {"enhancer": self.enhancer}

    @property
    def precision(self) -> torch.dtype:
        """Precision in which the network trains and is validated."""
        depth = self.recipe.data.patch[0] // POOLING
        return choose_volume_precision(self.recipe.schedule.precision, self.device, depth)

    def step(self, source: PatchSource, step: int, pieces: int, update: Update) -> dict[str, Tensor]:
        """Learn from one batch of patches."""
        recipe, weights = self.recipe, self.recipe.losses
        sample, random = source.at(step)
        patches = vary_patches(halved(sample.to(self.device)), recipe.augmentation, random, BACKGROUND)
        recoloured = recolour_patches(patches, recipe.augmentation, random)
        seen = vary_intensities(replace(patches, images=recoloured), recipe.augmentation, random, BACKGROUND)
        members = _members(random, recipe.data.single_missing)
        self.enhancer.zero_grad(set_to_none=True)
        totals: dict[str, Tensor] = {}
        for part, shown in zip(patches.pieces(pieces), seen.chunk(pieces), strict=True):
            share = len(part) / len(patches)
            with self.mixed_precision():
                logits, level = self.enhancer.parts(self.enhancer.shown(shown, members))
            losses = deep_losses(logits, part)
            truth = part.images[:, TARGET : TARGET + 1]
            enhancing = (part.labels[:, None] == ENHANCING).to(part.brain)
            losses["enhancing"] = L.region_loss(level, truth, part.brain, enhancing)
            loss = weights.entropy * losses["entropy"] + weights.dice * losses["dice"]
            (share * (loss + weights.enhancing * losses["enhancing"])).backward()  # type: ignore[no-untyped-call]
            add_to(totals, losses, share)
        update("enhancer")
        return totals

    @torch.no_grad()
    def pictures(self, sampler: PatchSampler) -> list[list[NDArray[np.float32]]]:
        """Draw one slice: the other sequences; the T1c, its enhancement, the expected one."""
        patches = halved(sampler.draw(np.random.default_rng([self.recipe.seed, 2**32]), 1).to(self.device))
        middle = patches.images.shape[-1] // 2
        logits, level = self.average.parts(self.average.shown(patches.images, _OTHERS))
        expected = masked(logits[0].softmax(dim=1)[:, ENHANCING : ENHANCING + 1] * level, patches.brain)
        real = patches.images[0, ..., middle].cpu().numpy()
        truth = (patches.labels[0] == ENHANCING).float()
        rows = [v[..., middle].float().cpu().numpy() for v in (truth, expected[0, 0])]
        return [[real[i] for i in _OTHERS], [real[TARGET], *rows]]

    def validate(self, cases: Sequence[Case], masks: Mapping[str, Path]) -> dict[str, float]:
        """Score the parts of the tumour that the averaged network finds."""
        network, patch = Blinded(self.average), self.recipe.data.patch
        scheme = self.recipe.normalization.build()
        rows = validation.score_segmenter3d(network, cases, masks, patch, self.device, self.precision, scheme)
        return validation.means(rows)

    def selection_score(self, scores: Mapping[str, float]) -> float:
        """Give the Dice of the tumour's core and of what enhances."""
        return scores["dice_TC"] + scores["dice_ET"]

    @classmethod
    def check_export(cls, request: ExportRequest) -> None:
        """Check that the enhancer is for a generator that makes T1c."""
        check_no_specialist(request)
        host_of(request)
        if request.output:
            raise UsageError("an enhancer joins no views and stretches nothing, its first stage does; leave out "
                             "--contrast, --fusion and --flip-average.")  # fmt: skip

    @classmethod
    def export_hosts(cls, request: ExportRequest) -> list[Entry]:
        """Give the generator whose T1c the enhancer is for."""
        return [host_of(request)]

    @classmethod
    def export(cls, request: ExportRequest) -> Entry:
        """Write the enhancer, unless its host makes a better T1c without it."""
        recipe, host, network = request.recipe_of(EnhancementRecipe), host_of(request), Enhancer(_CONFIG)
        request.state.load_into(network)
        spec = RefinerSpec(architecture=_CONFIG, normalization=recipe.normalization.build(), window=recipe.data.patch,
                           overlap=recipe.refinement.overlap)  # fmt: skip
        stage_one = None
        if request.cases:
            stage_one = Synthesizer(host.name, weights=host.folder, device=request.device, refine=False,
                                    specialists=False).model  # fmt: skip
        return promote_refiner(request, host, network, spec, stage_one)


def host_of(request: ExportRequest) -> Entry:
    """Find the generator whose T1c an enhancer is for.

    Raises:
        UsageError: none is named; it makes none or leaves it to a specialist, sees other inputs, or is refined by what
            refines other sequences too.
    """
    name = request.refines
    if name is None:
        raise UsageError("an enhancer, and nothing else, is for another model's T1c: name that model with --refines.")
    manifest = read_manifest(request.weights)
    host = manifest.entry(name)
    spec, scheme = host.spec, request.state.recipe.normalization.build()
    if not isinstance(spec, GeneratorSpec) or spec.normalization != scheme or "t1c" not in spec.targets:
        raise UsageError(f"{name!r} is no generator that makes T1c from scores as training sees them; name another.")
    if (specialist := spec.specialists.get("t1c")) is not None:
        raise UsageError(f"{name!r} leaves T1c to {specialist!r}; name that one with --refines.")
    before = manifest.entries.get(spec.refiner or "")
    if before is not None and not isinstance(spec_as(before, RefinerSpec).architecture, EnhancerConfig):
        raise UsageError(f"{name!r} has a refiner of other sequences too ({before.name}); name another generator.")
    return host


def halved(patches: Patches) -> Patches:
    """Halve the resolution of patches: block means, and the most frequent label."""
    classes = F.one_hot(patches.labels, CLASSES).movedim(-1, 1).float()
    return replace(
        patches,
        images=pooled(patches.images),
        brain=(pooled(patches.brain) >= 0.5).to(patches.brain),
        labels=pooled(classes).argmax(dim=1),
        extra_channels=patches.extra_channels[:, :, ::POOLING, ::POOLING, ::POOLING],
    )


def _members(random: np.random.Generator, single_missing: float) -> tuple[int, ...]:
    """The sequences that are shown: all but the T1c, or only one or two of them."""
    count = len(_OTHERS) if random.random() < single_missing else int(random.integers(1, len(_OTHERS)))
    return tuple(sorted(random.choice(_OTHERS, count, replace=False).tolist()))


TASK = EnhancementTask
