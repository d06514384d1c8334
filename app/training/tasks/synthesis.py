"""Training of a generator: the life of its task; `synthesis_step` holds one step of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError, WeightsError
from app.data.cases import Case
from app.networks import new_generator
from app.networks.architectures import GeneratorConfig
from app.networks.confidence import ConfidenceHead
from app.networks.ds3net.slice_generator import Ds3NetSliceGenerator
from app.networks.hf_gan import HfGan
from app.networks.unet import UNetGenerator
from app.preprocessing.normalization import BACKGROUND
from app.preprocessing.target_intensity import KAIST24_PRIOR, IntensityPredictor, IntensityPrior
from app.registry import onnx_export
from app.registry.checkpoints import load_generator
from app.registry.manifest import Entry, change_spec, read_manifest, spec_as
from app.registry.onnx_export import check_onnx_packages
from app.registry.spec import GeneratorSpec
from app.training import validation
from app.training.data.cache import CachedSubject
from app.training.data.slices import Sampler, Source, together
from app.training.data.unpaired import PairedSource
from app.training.data.variation.scanners import QUANTILES
from app.training.fits.intensity import IntensityCodes, encode, fit_intensity, fit_intensity_prior
from app.training.promotion.comparison import check_better, refiner_name, replaced_by
from app.training.promotion.request import ExportRequest, check_no_host, check_slot
from app.training.promotion.writing import trained_subjects, write_model
from app.training.tasks.base import TrainingContext, masked
from app.training.tasks.synthesis_jobs import Job
from app.training.tasks.synthesis_recipe import SynthesisRecipe, generator_config, generator_spec
from app.training.tasks.synthesis_step import SynthesisStep

log = logging.getLogger(__name__)


class SynthesisTask(SynthesisStep):
    """A generator: its batches, its beginning, its validation and its export."""

    recipe_type = SynthesisRecipe
    kind = "generator"

    #: The subjects that brightness is predicted from.
    subjects: Sequence[CachedSubject] = ()

    @classmethod
    def teaching_loss(cls, recipe: SynthesisRecipe) -> str | None:
        """Name the loss through which a frozen segmenter teaches; None where none does."""
        return "tversky" if recipe.losses.tversky > 0 else None

    @classmethod
    def check_start(cls, recipe: SynthesisRecipe, start: Entry | None) -> None:
        """Check that a frozen network is one that is trained."""
        if recipe.network.frozen and start is None:
            raise UsageError("network.frozen trains a head on a network that is good already; name it with --start.")
        if recipe.network.pretrained and start is None:
            raise UsageError("this recipe goes on from a trained model, as its note says; name it with --start.")

    @classmethod
    def choose(cls, recipe: SynthesisRecipe, subjects: list[CachedSubject]) -> list[CachedSubject]:
        """Choose the subjects whose names state one of the recipe's tumour types."""
        wanted = recipe.data.tumour_types
        chosen = [s for s in subjects if not wanted or s.tumour_type in wanted]
        if not chosen:
            raise UsageError(
                f"no subject is named as one of data.tumour_types = {', '.join(wanted)} (BraTS-{wanted[0]}-00001-000); "
                "--set 'data.tumour_types=[]' takes them all."
            )
        if left_out := [s.name for s in subjects if s not in chosen]:
            log.info("Left out, of another tumour type or of none: %s.", ", ".join(left_out))
        return chosen

    @classmethod
    def open(cls, context: TrainingContext[SynthesisRecipe]) -> Self:
        """Build the untrained networks of a run, with the true medians of its subjects."""
        recipe, subjects = context.recipe, context.subjects
        if recipe.schedule.precision == "fp16" and context.group.device.type == "cpu":
            raise UsageError("processors do not compute in float16; --set schedule.precision=fp32, or bf16.")
        torch.manual_seed(recipe.seed)
        codes = IntensityCodes(subjects) if recipe.network.intensity_encoding else None
        task = cls(recipe, context.group.device, context.teacher(cls.teaching_loss(recipe)), codes)
        task.subjects = [s for s in subjects if not s.simulated]
        return task

    @classmethod
    def withheld(cls, recipe: SynthesisRecipe) -> Modality | None:
        """Name the sequence that further exams may lack; who learns from complete ones alone has none."""
        network = recipe.network
        complete = network.frozen or network.intensity_encoding or network.neighbours > 0
        return None if complete or recipe.augmentation.scanner > 0 else recipe.data.lacking

    def new_source(self, context: TrainingContext[SynthesisRecipe]) -> Source | PairedSource:
        """Build what batches of slices come from."""
        recipe, rank = self.recipe, context.group.rank
        size, shift, prefetch = recipe.schedule.batch_size, recipe.augmentation.shift, context.prefetch
        if context.unpaired:
            return PairedSource(
                context.subjects, context.unpaired, recipe.data, size, share=recipe.data.unpaired_share, kind=Sampler,
                max_shift=shift, seed=recipe.seed, rank=rank, prefetch=prefetch,
            )  # fmt: skip
        sampler = Sampler(context.subjects, recipe.data, BACKGROUND, seed=recipe.seed, rank=rank,
                          neighbours=recipe.network.neighbours,
                          quantiles=QUANTILES if recipe.augmentation.scanner > 0 else 0,
                          alike=recipe.data.close)  # fmt: skip
        return Source(sampler, size, shift, prefetch)

    @classmethod
    def read_weights(cls, entry: Entry) -> HfGan | UNetGenerator:
        """Read a generator that makes any sequence."""
        network = load_generator(entry)
        if isinstance(network, Ds3NetSliceGenerator):
            raise WeightsError(f"model {entry.name!r} is a DS3-Net; start a run of the task ds3net from it.")
        return network

    def load_initial_weights(self, start: Entry) -> None:
        """Take the weights of a published generator.

        Of a confidence head it takes as much as the recipe asks for.

        Raises:
            UsageError: it has another architecture, or does not make what a frozen one shall; or a head of another
                kind, and the recipe trains more than the head.
            WeightsError: it is no generator, or its weights cannot be read.
        """
        network = self.read_weights(start)
        known = spec_as(start, GeneratorSpec).targets
        unknown = [m for m in self.recipe.data.targets if m not in known]
        if self.recipe.network.frozen and unknown:
            raise UsageError(
                f"model {start.name!r} makes {', '.join(known)} and not {', '.join(unknown)}; say so with --set "
                "data.targets=[...], and --set schedule.targets_per_batch=N for as many of them."
            )
        self._check_same_function(network.config, start)
        self._check_same_scale(start)
        state = self._with_more_slices(network.state_dict(), network.config)
        self._load(self._with_head(state, network.confidence, start.name), start)

    def _with_more_slices(self, state: dict[str, Tensor], theirs: GeneratorConfig) -> dict[str, Tensor]:
        """A generator's weights for more slices: it begins as the same function, and makes each as the middle one."""
        own = self.generator.config
        if own.slices > theirs.slices == 1:
            heads = ("network.head", "confidence.2")
            last = {f"{head}.{part}" for head in heads for part in ("weight", "bias")} & set(state)
            state = {**state, **{k: torch.cat([state[k]] * own.slices) for k in last}}
        more = len(MODALITIES) * 2 * (own.neighbours - theirs.neighbours)
        if more <= 0:
            return state
        first, known = "network.downs.0.0.weight", len(MODALITIES) * (1 + 2 * theirs.neighbours)
        images, codes = state[first][:, :known], state[first][:, known:]
        empty = images.new_zeros(images.shape[0], more, *images.shape[2:])
        return {**state, first: torch.cat([images, empty, codes], dim=1)}

    def _check_same_function(self, config: GeneratorConfig, start: Entry) -> None:
        """Refuses a model whose weights would fit and mean something else."""
        own = self.generator.config
        for key in ("position", "activation", "gate"):
            theirs = getattr(config, key, None)
            if type(config) is type(own) and theirs != getattr(own, key, None):
                raise UsageError(
                    f"model {start.name!r} has {key} = {theirs!r}; go on so with --set network.{key}={theirs}."
                )

    def _check_same_scale(self, start: Entry) -> None:
        """Refuses a model that saw intensities on another scale; warns where only the constants are others."""
        theirs, own = spec_as(start, GeneratorSpec).normalization, self.recipe.normalization.build()
        if theirs.scheme != own.scheme:
            raise UsageError(
                f"model {start.name!r} has normalization.scheme = {theirs.scheme!r}; go on so with "
                f"--set normalization.scheme={theirs.scheme}."
            )
        if theirs != own:
            log.warning("%s was trained with other constants of normalization than the recipe's.", start.name)

    def _with_head(self, state: dict[str, Tensor], head: ConfidenceHead | None, name: str) -> dict[str, Tensor]:
        """A generator's weights with as much of a confidence head as the recipe asks for."""
        wanted = self.generator.confidence
        bare = {k: v for k, v in state.items() if not k.startswith("confidence.")}
        if wanted is None:
            return bare
        another = head is not None and wanted.kind != head.kind
        if head is None or (another and self.recipe.network.frozen):
            # A head may be new: it begins at random, on what is there.
            if another:
                log.info("The confidence head of %s is of another kind and makes room for a new one.", name)
            own = self.generator.state_dict()
            return bare | {k: v for k, v in own.items() if k.startswith("confidence.")}
        if another:
            raise UsageError(f"model {name!r} has a confidence head of the kind {head.kind!r}; "
                             "set network.confidence to that, or start from one without.")  # fmt: skip
        if "lambda" in self.task_state:
            self.restore_task_state({**self.task_state, "lambda": head.scale})
        return state

    def rate_factor(self, network: str) -> float:
        """Give the learning rate of a network as a multiple of the recipe's."""
        return self.recipe.optimizer.discriminator_rate if network == "discriminator" else 1.0

    @torch.no_grad()
    def pictures(self, sampler: Sampler) -> list[list[np.ndarray]]:
        """Draw truth and result of one slice without variation, each target in turn."""
        draw = np.random.default_rng([self.recipe.seed, 2**32])
        slices = sampler.draw(draw, draw, 1).to(self.device)
        batch, seen, rows = slices.every(len(slices)), together(slices.images, len(slices)), []
        for target in sorted(MODALITIES.index(m) for m in self.recipe.data.targets):
            job = Job(target, tuple(i for i in range(len(MODALITIES)) if i != target), target)
            plan = job.first_pass(1, self.device)
            median = self._medians(batch, plan)
            image = self.average(seen, plan.present, plan.target, batch.views, median, members=plan.members)
            shown = masked(image.float(), batch.brain)[0, 0]
            rows.append([batch.images[0, target].cpu().numpy(), shown.cpu().numpy()])
        return rows

    def validate(self, cases: Sequence[Case], masks: Mapping[str, Path]) -> dict[str, float]:
        """Score the averaged generator's volumes, each sequence dropped in turn."""
        recipe = self.recipe
        predictor = _predictor_of(recipe, self.subjects)
        views = [v for v in recipe.schedule.validation_views if v in recipe.data.views] or list(recipe.data.views)
        spec = generator_spec(recipe, self.average.config, _prior_of(recipe, self.subjects), views)
        model = validation.candidate_model(self.average, spec, predictor, self.device)
        return validation.means(validation.score_missing_sequences(model, cases, masks))

    @classmethod
    def check_export(cls, request: ExportRequest) -> None:
        """Check that the generator fits the place that it shall take."""
        check_no_host(request)
        check_slot(request, request.recipe_of(SynthesisRecipe).data.targets)

    @classmethod
    def export(cls, request: ExportRequest) -> Entry:
        """Write the generator with its ONNX, unless it is worse than one before."""
        recipe, subjects = request.recipe_of(SynthesisRecipe), trained_subjects(request)
        config = generator_config(recipe)
        config = replace(config, confidence_scale=request.state.task_state.get("lambda", config.confidence_scale))
        spec = generator_spec(recipe, config, _prior_of(recipe, subjects))
        return promote_generator(request, new_generator(config), spec, _brightness_of(recipe, subjects))


def promote_generator(
    request: ExportRequest,
    network: HfGan | UNetGenerator | Ds3NetSliceGenerator,
    spec: GeneratorSpec,
    brightness: dict[str, Any] | None,
) -> Entry:
    """Write a generator with its ONNX, unless it is worse than one whose place it would take.

    Args:
        network: of the run's shape; it gets the run's weights.
        brightness: form of the predictor of the target's intensities; None where the scheme's constants hold.

    Raises:
        UsageError: it is worse, or ONNX cannot be written here.
    """
    check_onnx_packages()
    request.state.load_into(network)
    network.requires_grad_(False).eval()
    scores = None
    if request.cases:
        predictor = None if brightness is None else IntensityPredictor.from_json(brightness)
        model = validation.candidate_model(network, spec, predictor, request.torch_device)
        rows = validation.score_missing_sequences(model, request.cases, request.masks)
        scores = validation.scores_of(rows, spec.targets)
        if not request.force:
            check_better(request, scores, spec.targets)
    entry = write_model(
        request,
        spec.model_copy(update={"specialists": _specialists_before(request)}),
        scores,
        intensity=None if brightness is None else encode(brightness),
        onnx=onnx_export.to_onnx(network, spec.canvas),
        make_default=request.make_default,
    )
    if request.specialist_of is not None:
        host = read_manifest(request.weights).entry(request.specialist_of)
        specialists = {**spec_as(host, GeneratorSpec).specialists, **dict.fromkeys(spec.targets, request.name)}
        change_spec(host, specialists=specialists)
    return entry


def _prior_of(recipe: SynthesisRecipe, subjects: Sequence[CachedSubject]) -> IntensityPrior | None:
    """The prior of the targets' medians that a recipe asks for; None without intensity encoding."""
    if not recipe.network.intensity_encoding:
        return None
    return KAIST24_PRIOR if recipe.network.intensity_prior == "published" else fit_intensity_prior(subjects)


def _brightness_of(recipe: SynthesisRecipe, subjects: Sequence[CachedSubject]) -> dict[str, Any] | None:
    """The form of the predictor of the target's brightness; None where the scheme's constants hold."""
    return None if recipe.normalization.scheme == "dataset" else fit_intensity([s.intensities for s in subjects])


def _predictor_of(recipe: SynthesisRecipe, subjects: Sequence[CachedSubject]) -> IntensityPredictor | None:
    form = _brightness_of(recipe, subjects)
    return None if form is None else IntensityPredictor.from_json(form)


def _specialists_before(request: ExportRequest) -> dict[Modality, str]:
    """The specialists of the model of the same name, which it keeps; its refiner it loses."""
    specialists: dict[Modality, str] = {}
    for _, entry in replaced_by(request.weights, request.name, make_default=False):
        if refiner := refiner_name(entry):
            log.warning("%s had a refiner, %s, of its old weights; train one of the new.", request.name, refiner)
        specialists = entry.spec.specialists if isinstance(entry.spec, GeneratorSpec) else {}
    return specialists


TASK = SynthesisTask
