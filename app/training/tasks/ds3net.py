"""Training of DS3-Net: a teacher from paired slices, then a student from the teacher and unpaired ones.

Source: Huang et al., MICCAI 2022 (`app.networks.ds3net`), section 3.2.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from app.core.constants import Modality
from app.core.errors import UsageError, WeightsError
from app.data.cases import Case
from app.networks.ds3net.slice_generator import Ds3NetSliceGenerator
from app.preprocessing.normalization import Intensity
from app.preprocessing.target_intensity import IntensityPredictor
from app.registry.checkpoints import load_generator
from app.registry.manifest import Entry, spec_as
from app.registry.spec import GeneratorSpec
from app.training import validation
from app.training.data.cache import CachedSubject
from app.training.data.slices import SampledStep, Sampler
from app.training.data.unpaired import PairedSource
from app.training.fits.intensity import fit_intensity
from app.training.promotion.request import ExportRequest, check_no_host, check_slot
from app.training.promotion.writing import trained_subjects
from app.training.tasks.base import TrainingContext
from app.training.tasks.ds3net_recipe import Ds3NetRecipe
from app.training.tasks.ds3net_step import Ds3NetStep
from app.training.tasks.synthesis import promote_generator

log = logging.getLogger(__name__)


class Ds3NetTask(Ds3NetStep):
    """A teacher and a student: their batches, beginning, validation and export."""

    recipe_type = Ds3NetRecipe
    kind = "generator"
    takes_simulated = False

    #: The paired subjects, from which brightness is predicted.
    subjects: Sequence[CachedSubject] = ()

    @classmethod
    def withheld(cls, recipe: Ds3NetRecipe) -> Modality:
        """Name the target: further exams may lack it."""
        return recipe.data.target

    @classmethod
    def open(cls, context: TrainingContext[Ds3NetRecipe]) -> Self:
        """Build the untrained networks of a run."""
        task = super().open(context)
        task.subjects = context.subjects
        return task

    def new_source(self, context: TrainingContext[Ds3NetRecipe]) -> PairedSource:
        """Build what paired and unpaired slices come from.

        Without unpaired exams the student is taught on the sources of the paired ones, as with all data paired.
        """
        recipe = self.recipe
        if not context.unpaired:
            log.warning("No exams without %s are given (--unpaired): the student sees the paired exams' sources alone.",
                        recipe.data.target)  # fmt: skip
        return PairedSource(
            context.subjects,
            context.unpaired or context.subjects,
            recipe.data,
            recipe.schedule.batch_size,
            max_shift=recipe.augmentation.shift,
            seed=recipe.seed,
            rank=context.group.rank,
            prefetch=context.prefetch,
        )

    @classmethod
    def read_weights(cls, entry: Entry) -> Ds3NetSliceGenerator:
        """Read a DS3-Net."""
        network = load_generator(entry)
        if not isinstance(network, Ds3NetSliceGenerator):
            raise WeightsError(f"model {entry.name!r} is no DS3-Net; name one that the task ds3net trained.")
        return network

    def load_initial_weights(self, start: Entry) -> None:
        """Take the weights of a published model for teacher and student.

        Raises:
            UsageError: it makes another sequence, or has another architecture than the recipe.
            WeightsError: it is no DS3-Net, or its weights cannot be read.
        """
        super().load_initial_weights(start)
        if (known := spec_as(start, GeneratorSpec).targets) != self.recipe.data.targets:
            raise UsageError(f"model {start.name!r} makes {known[0]}; start from one that makes "
                             f"{self.recipe.data.target}, or set data.targets.")  # fmt: skip
        self.teacher.generator.load_state_dict(self.student.generator.state_dict())

    # ------------------------------------------------------------ looking at it

    @torch.no_grad()
    def pictures(self, sampler: Sampler) -> list[list[NDArray[np.float32]]]:
        """Draw one slice: the real sequence, the teacher's and the student's."""
        draw = np.random.default_rng([self.recipe.seed, 2**32])
        slices = self.slices(SampledStep(sampler.draw(draw, draw, 1), draw, draw))
        images = [slices.target, self.teacher.make(slices.sources).image, self.average.generator(slices.sources).image]
        return [[image[0, 0].float().cpu().numpy() for image in images]]

    def validate(self, cases: Sequence[Case], masks: Mapping[str, Path]) -> dict[str, float]:
        """Score the averaged student's volumes; while the teacher learns alone, the student is the teacher."""
        model = validation.candidate_model(self.average, self.recipe.spec, _predictor(self.subjects), self.device)
        return validation.means(validation.score_missing_sequences(model, cases, masks))

    def selection_score(self, scores: Mapping[str, float]) -> float:
        """Give what the best checkpoint has most of; one of the first stage is never better than a later one."""
        return scores["ssim_brain"] - 2 * self.is_first_stage

    # ------------------------------------------------------------ after a run

    @classmethod
    def check_export(cls, request: ExportRequest) -> None:
        """Check that the student fits the place that it shall take."""
        check_no_host(request)
        check_slot(request, request.recipe_of(Ds3NetRecipe).data.targets)

    @classmethod
    def export(cls, request: ExportRequest) -> Entry:
        """Write the student with its ONNX, unless it is worse than one before."""
        recipe = request.recipe_of(Ds3NetRecipe)
        network = Ds3NetSliceGenerator(recipe.architecture)
        return promote_generator(request, network, recipe.spec, fit_intensity(_intensities(trained_subjects(request))))


def _intensities(subjects: Sequence[CachedSubject]) -> list[dict[Modality, Intensity]]:
    return [s.intensities for s in subjects]


def _predictor(subjects: Sequence[CachedSubject]) -> IntensityPredictor:
    return IntensityPredictor.from_json(fit_intensity(_intensities(subjects)))


TASK = Ds3NetTask
