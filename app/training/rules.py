"""What no type says of a recipe: which values cannot be, and which do not go together."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.preprocessing.slices import MULTIPLE

if TYPE_CHECKING:
    from app.training.config import Recipe


def check(recipe: Recipe, source: str) -> None:
    """Whether a recipe's values go together.

    Raises:
        UsageError: names the rule that is broken.
    """
    schedule, data, optimizer = recipe.schedule, recipe.data, recipe.optimizer
    network, usual = recipe.network, type(recipe.network)()
    rules = {
        "schedule.steps or schedule.budget_minutes must be above 0": schedule.steps > 0 or schedule.budget_minutes > 0,
        "schedule.steps, budget_minutes and epoch_steps must not be negative": min(
            schedule.steps, schedule.budget_minutes, schedule.epoch_steps, schedule.validate_every
        )
        >= 0,
        "schedule.batch_size must be at least 1": schedule.batch_size >= 1,
        "data.makes is for the task synthesis": recipe.task == "synthesis" or data.makes == MODALITIES,
        "data.makes must name one sequence or more, each once": 0 < len(data.makes) == len(set(data.makes)),
        "schedule.targets must be 1 to 4, and no more than data.makes names": 1 <= schedule.targets <= len(data.makes),
        "schedule.warmup must be from 0 to below 1": 0 <= schedule.warmup < 1,
        "data.views must name one view or more": bool(data.views),
        f"data.axial, sagittal and coronal must be multiples of {MULTIPLE}": all(
            n > 0 and n % MULTIPLE == 0 for n in (*data.axial, *data.sagittal, *data.coronal)
        ),
        # More levels would halve a canvas that is no longer even; GroupNorm has eight groups.
        "network.widths must be 2 to 5 multiples of 8": 2 <= len(network.widths) <= 5
        and all(w > 0 and w % 8 == 0 for w in network.widths),
        "network.widths are those of network.kind = 'unet'; the hybrid generator has network.preset": (
            network.kind == "unet" or network.widths == usual.widths
        ),
        f"data.patch must be three multiples of {MULTIPLE}": all(n > 0 and n % MULTIPLE == 0 for n in data.patch),
        # It looks at half the resolution.
        f"data.patch of the task enhancement must be three multiples of {2 * MULTIPLE}": (
            recipe.task != "enhancement" or all(n % (2 * MULTIPLE) == 0 for n in data.patch)
        ),
        # A single voxel in its deepest layer could not be normalised.
        f"data.patch of the task enhancement must be longer than {2 * MULTIPLE} in one direction": (
            recipe.task != "enhancement" or max(data.patch) > 2 * MULTIPLE
        ),
        "data.single_missing and tumour_share are probabilities": all(
            0 <= p <= 1 for p in (data.single_missing, data.tumour_share)
        ),
        "seed must be below 2**63": recipe.seed < 2**63,
        "seed, data.held_out and every augmentation must not be negative": min(
            recipe.seed,
            data.held_out,
            *dataclasses.asdict(recipe.augmentation).values(),
        )
        >= 0,
        "augmentation.transplant is a probability, of slices: not for the tasks that see volumes": (
            recipe.augmentation.transplant <= (1 if recipe.task in ("synthesis", "segmentation") else 0)
        ),
        "augmentation.hidden is a probability, of transplanted tumours: set augmentation.transplant": (
            recipe.augmentation.hidden <= (1 if recipe.augmentation.transplant > 0 else 0)
        ),
        "augmentation.fade is a probability, of slices of the task synthesis": (
            recipe.augmentation.fade <= (1 if recipe.task == "synthesis" else 0)
        ),
        "augmentation.poor is a probability, of slices of the task synthesis": (
            recipe.augmentation.poor <= (1 if recipe.task == "synthesis" else 0)
        ),
        "augmentation.recolour_t1n and recolour_t2f are probabilities, for the tasks synthesis and enhancement": (
            max(recipe.augmentation.recolour_t1n, recipe.augmentation.recolour_t2f)
            <= (1 if recipe.task in ("synthesis", "enhancement") else 0)
        ),
        "augmentation.zoom and bias must be below 1": max(recipe.augmentation.zoom, recipe.augmentation.bias) < 1,
        "optimizer.beta1 and beta2 must be from 0 to below 1": all(
            0 <= b < 1 for b in (optimizer.beta1, optimizer.beta2)
        ),
        "the discriminator needs a canvas of 32 pixels or more": min(*data.axial, *data.sagittal, *data.coronal) >= 32
        or (recipe.losses.adversarial == 0 and recipe.losses.classification == 0),
        "optimizer.learning_rate and clip_norm must be above 0": min(optimizer.learning_rate, optimizer.clip_norm) > 0,
        "optimizer.weight_decay and discriminator_rate must not be negative": min(
            optimizer.weight_decay, optimizer.discriminator_rate
        )
        >= 0,
        "schedule.validation_subjects must be at least 1": schedule.validation_subjects >= 1,
        "output.contrast must be from 0 to 1": 0 <= recipe.output.contrast <= 1,
        "refinement.overlap and blur must be from 0 to 1, the overlap below": 0 <= recipe.refinement.overlap < 1
        and 0 <= recipe.refinement.blur <= 1,
        "refinement.drift, contrast and noise must not be negative": min(
            recipe.refinement.drift, recipe.refinement.contrast, recipe.refinement.noise
        )
        >= 0,
        "optimizer.ema must be from 0 to below 1": 0 <= optimizer.ema < 1,
        "no loss may be negative": all(
            v >= 0 for v in dataclasses.asdict(recipe.losses).values() if not isinstance(v, str)
        ),
        "losses.feature needs network.kind = 'hybrid', which has a bottleneck of its own": recipe.network.kind
        == "hybrid"
        or recipe.losses.feature == 0,
        "network.confidence needs losses.confidence above 0": recipe.network.confidence == "none"
        or recipe.losses.confidence > 0,
        "network.frozen trains a confidence head alone: choose one with network.confidence": not recipe.network.frozen
        or recipe.network.confidence != "none",
        "network.frozen leaves nothing to judge: set losses.adversarial and losses.classification to 0": not (
            recipe.network.frozen and (recipe.losses.adversarial > 0 or recipe.losses.classification > 0)
        ),
        "output.fusion = 'confidence' needs network.confidence": recipe.output.fusion != "confidence"
        or recipe.network.confidence != "none",
        "network.discriminator_width must be at least 1": recipe.network.discriminator_width >= 1,
    }
    for rule, holds in rules.items():
        if not holds:
            raise UsageError(f"{source}: {rule}.")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "") -> dict[str, tuple[Any, Any]]:
    """What two recipes' JSON forms say otherwise: per key, with its section, the old and the new value."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in {**old, **new}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= differences(a, b, f"{where}{key}.")
        elif a != b:
            found[where + key] = (a, b)
    return found
