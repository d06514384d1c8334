"""What both trainings share: their atlas and batches, the weight of the confidence, validation and export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from app.data.cases import Case
from app.inference.simulation.atlas import Atlas
from app.inference.simulation.simulator import ExamSimulator
from app.networks.cgsamr import losses as L
from app.networks.cgsamr import new_simulator
from app.networks.cgsamr.generator import SimulatedSlices
from app.registry.checkpoints import load_simulator
from app.registry.manifest import Entry
from app.training import validation
from app.training.data.cache import CachedSubject
from app.training.data.splits import labelled_subjects
from app.training.promotion.request import ExportRequest, check_no_images
from app.training.promotion.writing import promote_scored, trained_subjects
from app.training.tasks.base import Task, TrainingContext
from app.training.tasks.cgsamr.outlines import OutlineSampler, Slices, training_atlas
from app.training.tasks.cgsamr.recipe import OutlineRecipe
from app.training.tasks.cgsamr.scoring import SIMULATION_METRICS, score_simulator

Outline = TypeVar("Outline", bound=OutlineRecipe)


class SimulationTask(Task[Outline]):
    """Base of both.

    Attributes:
        atlas: what the prior is cut from.
        confident: whether the mean confidence of a batch has been above 0.7; from then on lambda_cm is smaller.
    """

    kind = "cgsamr"
    takes_simulated = False

    average: Any
    atlas: Atlas
    confident: bool = False

    @classmethod
    def open(cls, context: TrainingContext[Outline]) -> Self:
        """Build the untrained networks of a run, and read or make its atlas."""
        task = super().open(context)
        task.atlas = training_atlas(context.recipe.data, context.subjects, context.data)
        return task

    @classmethod
    def usable(cls, subjects: list[CachedSubject]) -> list[CachedSubject]:
        """Choose the subjects with a segmentation: without one there is no outline."""
        return labelled_subjects(subjects)

    @classmethod
    def read_weights(cls, entry: Entry) -> nn.Module:
        """Read a network that makes exams."""
        return load_simulator(entry)

    @property
    def shift(self) -> int:
        """Largest translation of a slice in pixels."""
        return self.recipe.augmentation.shift

    def new_sampler(self, context: TrainingContext[Outline], seed: int = 0) -> OutlineSampler:
        """Build a sampler of the training subjects.

        Args:
            seed: added to the recipe's.
        """
        recipe = self.recipe
        return OutlineSampler(context.subjects, recipe.data, self.atlas, recipe.prior, seed=recipe.seed + seed,
                              rank=context.group.rank)  # fmt: skip

    # ------------------------------------------------------------ in a run

    def rate_factor(self, network: str) -> float:
        """Give the learning rate of a network as a multiple of the recipe's."""
        return self.recipe.optimizer.discriminator_rate if network == "discriminators" else 1.0

    def confidence_loss(self, made: SimulatedSlices, exam: Tensor) -> Tensor:
        """Compute equation 1 at half scale, and look whether the network has grown confident.

        Args:
            made: with an intermediate image.
            exam: what it should be.
        """
        assert made.intermediate is not None and made.confidence is not None
        weight = L.confidence_weight(self.confident)
        loss = L.confidence_loss(made.intermediate, made.confidence, L.half_scale(exam), weight)
        self.confident = self.confident or bool(made.confidence.detach().mean() > L.CONFIDENT)
        return loss

    @property
    def task_state(self) -> Mapping[str, float]:
        """Whether the mean confidence has been above its threshold."""
        return {"confident": float(self.confident)}

    def restore_task_state(self, values: Mapping[str, float]) -> None:
        """Take over whether it has."""
        self.confident = values["confident"] > 0

    def validate(self, cases: Sequence[Case], masks: Mapping[str, Path]) -> dict[str, float]:
        """Make each subject's exam from its own outline, and compare it with the real one."""
        recipe = self.recipe
        simulator = ExamSimulator(self.average, recipe.architecture, recipe.data.canvas, self.atlas, self.device)
        return validation.means(score_simulator(simulator, cases, masks))

    def selection_score(self, scores: Mapping[str, float]) -> float:
        """Give the share of right pixels in lesions, and the likeness of the whole."""
        return scores["accuracy_tumour"] + scores["ssim_brain"]

    # ------------------------------------------------------------ after a run

    @classmethod
    def check_export(cls, request: ExportRequest) -> None:
        """Check that nothing is asked for that is for models that complete exams."""
        super().check_export(request)
        check_no_images(request, "a simulator completes no exam")

    @classmethod
    def export(cls, request: ExportRequest) -> Entry:
        """Write the network with its atlas, unless its exams are worse than those of the one of its name."""
        recipe, rows = request.recipe_of(OutlineRecipe), None
        atlas = training_atlas(recipe.data, trained_subjects(request), request.data)
        if request.cases:
            network = new_simulator(recipe.architecture)
            request.state.load_into(network)
            device, canvas = request.torch_device, recipe.data.canvas
            simulator = ExamSimulator(network.to(device).eval(), recipe.architecture, canvas, atlas, device)
            rows = score_simulator(simulator, request.cases, request.masks)
        return promote_scored(request, recipe.spec, rows, SIMULATION_METRICS, atlas=atlas.to_bytes())


def sample_rows(slices: Slices, made: SimulatedSlices, sequences: int) -> list[list[NDArray[np.float32]]]:
    """Lay out the first slice of a batch for a picture.

    Returns:
        Per sequence the real, the made and the intermediate image; then the labels and 1 minus the mean confidence.
    """
    images = [slices.exam[0], made.image[0]]
    if made.intermediate is not None:
        images.append(F.interpolate(made.intermediate, scale_factor=2.0)[0])
    rows = [[image[number].float() for image in images] for number in range(sequences)]
    last = [slices.labels[0].float() / slices.labels.max().clamp(min=1)]
    if made.confidence is not None:
        last.append(1 - F.interpolate(made.confidence.mean(dim=1, keepdim=True), scale_factor=2.0)[0, 0].float())
    return [[image.cpu().numpy() for image in row] for row in (*rows, last)]
