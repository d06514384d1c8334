"""Trains a generator with L1 and SSIM on slices of all views, for a given time or number of steps."""

from __future__ import annotations

import copy
import csv
import logging
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from app.cases import scan
from app.constants import VIEWS
from app.errors import UsageError
from app.intensity import Normalization
from app.models.generator import PRESETS, Generator, GeneratorConfig
from app.training.batches import Augmentation, Batch, Sampler
from app.training.cache import CachedSubject, build_cache
from app.training.losses import l1_loss, ssim_loss
from app.training.regression import encode, fit_intensity
from app.views import Canvas
from app.weights import Entry, save_generator

log = logging.getLogger(__name__)

NORMALIZATION = Normalization("volume", background=-1.0)
#: Most brains fit; a larger one gets a larger window at inference.
CANVAS = Canvas({"axial": (144, 176), "sagittal": (176, 144), "coronal": (144, 144)})


@dataclass(frozen=True)
class TrainingConfig:
    """One training run.

    Attributes:
        preset: width of the generator.
        budget_minutes: when the schedule ends; `steps` may end it earlier.
        l1, ssim: weights of the losses.
        learning_rate: peak of one cosine cycle after `warmup` of the run.
        ema: share that the averaged weights keep at each step.
    """

    preset: str = "compact"
    budget_minutes: float = 30.0
    steps: int | None = None
    batch_size: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    warmup: float = 0.03
    clip_norm: float = 1.0
    l1: float = 1.0
    ssim: float = 0.5
    ema: float = 0.998
    single_missing: float = 0.85
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise UsageError(f"preset {self.preset!r} is not known; use one of {', '.join(PRESETS)}.")
        if self.budget_minutes <= 0 or (self.steps is not None and self.steps < 1):
            raise UsageError("training needs a time budget and a number of steps above 0.")


class Trainer:
    """A generator, its optimiser and the running average of its weights."""

    def __init__(self, config: TrainingConfig, subjects: list[CachedSubject], canvas: Canvas = CANVAS) -> None:
        torch.manual_seed(config.seed)
        self.config = config
        self.device = torch.device(config.device)
        background = NORMALIZATION.background
        assert background is not None
        network = Generator(GeneratorConfig(width=PRESETS[config.preset], background=background))
        self.network = network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
        )
        self.sampler = Sampler(
            subjects,
            canvas,
            background,
            augmentation=Augmentation(),
            single_missing=config.single_missing,
            seed=config.seed,
        )
        self.step = 0

    def progress(self, elapsed_minutes: float) -> float:
        """How much of the run is over, 0 to 1."""
        by_steps = 0.0 if self.config.steps is None else self.step / self.config.steps
        return max(by_steps, elapsed_minutes / self.config.budget_minutes)

    def train_step(self, progress: float) -> dict[str, float]:
        """One batch, one update; returns the losses."""
        config = self.config
        warm = min(1.0, (progress + 1e-4) / config.warmup)
        rate = config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses = self._losses(self.sampler.draw(config.batch_size))
        total = config.l1 * losses["l1"] + config.ssim * losses["ssim"]
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
        else:
            log.warning("Step %d had a gradient that is not finite; it is skipped.", self.step)
        self.step += 1
        self._update_average()
        return {name: float(value.detach()) for name, value in losses.items()}

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        device = self.device
        images, truth, brain, scale = (
            torch.from_numpy(a).to(device) for a in (batch.images, batch.truth, batch.brain, batch.scale)
        )
        count = len(images)
        present = torch.zeros(count, 4, device=device)
        present[:, list(batch.members)] = 1
        indices = [torch.full((count,), i, device=device) for i in (batch.target, batch.view)]
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            made = self.network(images, present, *indices, members=batch.members)
        return {"l1": l1_loss(made.float(), truth, brain), "ssim": ssim_loss(made, truth, brain, scale)}

    @torch.no_grad()
    def _update_average(self) -> None:
        # Early on the average must not be dominated by the random start.
        keep = min(self.config.ema, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
            mean.lerp_(value, 1 - keep)


def train_generator(data: Path, cache: Path, folder: Path, name: str, config: TrainingConfig) -> Entry:
    """Trains on every complete subject of `data` and writes the averaged weights as model `name` of `folder`.

    Args:
        cache: folder for prepared arrays (about 40 MB a subject), made if need be and used again.

    Raises:
        UsageError: fewer than two subjects can be used.
        WeightsError: `folder` cannot be written to.
    """
    cases = scan(data).cases if not (cache / "index.json").exists() else ()
    subjects = build_cache(cases, cache, NORMALIZATION)
    trainer = Trainer(config, subjects)
    began = said = time.monotonic()
    sums: dict[str, float] = {"l1": 0.0, "ssim": 0.0}
    counted = 0
    with (cache / f"{name}-log.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["step", "minutes", "l1", "ssim_loss"])
        while (progress := trainer.progress((time.monotonic() - began) / 60)) < 1:
            for key, value in trainer.train_step(progress).items():
                sums[key] += value
            counted += 1
            if time.monotonic() - said > 20 or trainer.step == config.steps:
                said = time.monotonic()
                minutes = (said - began) / 60
                l1, ssim = sums["l1"] / counted, sums["ssim"] / counted
                writer.writerow([trainer.step, f"{minutes:.2f}", f"{l1:.4f}", f"{ssim:.4f}"])
                stream.flush()
                speed = trainer.step * config.batch_size / (said - began)
                log.info(
                    "%5.1f min  step %d  L1 %.4f  1-SSIM %.4f  %.1f slices/s", minutes, trainer.step, l1, ssim, speed
                )
                sums, counted = dict.fromkeys(sums, 0.0), 0
    return save_generator(
        folder,
        name,
        trainer.network.config,
        # Half the size; the rounding is below that of the bfloat16 in which most machines run it.
        {k: v.half() for k, v in trainer.average.state_dict().items()},
        NORMALIZATION,
        CANVAS,
        VIEWS,
        intensity=encode(fit_intensity([s.intensities for s in subjects])),
        details={
            "training": {
                "subjects": len(subjects),
                "names": [s.name for s in subjects],
                "config": asdict(config),
                "steps": trainer.step,
                "slices": trainer.step * config.batch_size,
            }
        },
    )
