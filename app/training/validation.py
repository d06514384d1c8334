"""Scores of a model that is still in training, by the pipeline and metrics of finished ones."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from app.core.config import ModelOptions, RuntimeOptions
from app.core.constants import MODALITIES, REFERENCE_OF, Modality
from app.core.errors import CaseError, UsageError
from app.data.cases import Case
from app.data.labels import load_labels
from app.data.loading import load_complete
from app.data.nifti_writer import to_array
from app.evaluation.metrics.image import image_scores
from app.evaluation.metrics.segmentation import segmentation_scores
from app.evaluation.scoring import VolumeScores
from app.evaluation.statistics import summarise
from app.inference.backends import TorchBackend
from app.inference.device import Machine, choose_runtime
from app.inference.loading import fusion_for
from app.inference.models import Model, NetworkModel
from app.inference.pipeline import synthesize_case
from app.inference.refinement import VolumeRefiner
from app.inference.slicewise.slice_predictor import SlicePredictor
from app.inference.tumour.segmentation import TumourSegmenter, segment_slices
from app.inference.tumour.tissnet import CompletingSegmenter
from app.networks.ds3net.slice_generator import Ds3NetSliceGenerator
from app.networks.enhancer import Enhancer
from app.networks.hf_gan import HfGan
from app.networks.refiner import Refiner
from app.networks.tissnet.model import TissNet
from app.networks.unet import Segmenter2d, UNetGenerator
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import BACKGROUND, Normalization, measure, normalize
from app.preprocessing.target_intensity import IntensityPredictor
from app.registry.identity import Identity
from app.registry.lineage import ModelScores
from app.registry.spec import GeneratorSpec, RefinerSpec, TissNetSpec
from app.training.data.cache import NORMALIZATION
from app.training.data.sections import SliceData

log = logging.getLogger(__name__)

#: A model that is still in training.
CANDIDATE = Identity("candidate", "0" * 64)
#: What a model is compared by, each the higher the better.
SELECTION_METRICS = ("official_healthy", "official_tumour", "ssim_brain")
SEGMENTATION_METRICS = ("dice_WT", "dice_TC", "dice_ET")


def candidate_model(
    network: HfGan | UNetGenerator | Ds3NetSliceGenerator,
    spec: GeneratorSpec,
    intensity: IntensityPredictor | None,
    device: torch.device,
) -> Model:
    """Build the pipeline's model of a generator as it runs by default; its network is a copy."""
    runtime = choose_runtime({"torch"}, Machine.probe(), RuntimeOptions(str(device)))
    backend = TorchBackend(copy.deepcopy(network), runtime)
    shape = spec.architecture
    predictor = SlicePredictor(backend, runtime.batch_size, shape.neighbours, shape.slices)
    return NetworkModel(CANDIDATE, spec, intensity, predictor, runtime, fusion_for(spec, ModelOptions()))


def candidate_refined_model(network: Refiner | Enhancer, spec: RefinerSpec, stage_one: Model) -> Model:
    """Build the pipeline's model of a refined first stage, specialists included; the refiner is a copy."""
    assert isinstance(stage_one, NetworkModel)
    runtime = choose_runtime({"torch"}, Machine.probe(), RuntimeOptions(stage_one.runtime.device))
    refiner = VolumeRefiner(CANDIDATE, spec, copy.deepcopy(network), runtime)
    specialists = {m: replace(one, refiner=refiner) for m, one in stage_one.specialists.items()}
    return replace(stage_one, refiner=refiner, specialists=specialists)


def score_missing_sequences(
    model: Model, cases: Iterable[Case], masks: Mapping[str, Path], targets: Sequence[Modality] | None = None
) -> list[VolumeScores]:
    """Drop each sequence of each complete subject in turn, make it, and score it.

    A sequence that cannot be made is left out by name.

    Args:
        masks: per subject, its segmentation; without one the tumour scores are NaN.
        targets: the sequences to drop; those that the model makes if not given.
    """
    results: list[VolumeScores] = []
    for subject, volumes in load_complete(cases):
        before, first = len(results), volumes[MODALITIES[0]]
        labels = load_labels(masks.get(subject), first.grid, subject)
        tumour = None if labels is None else np.asarray(labels > 0)
        for target in targets or model.targets:
            inputs = {m: v for m, v in volumes.items() if m != target}
            try:
                image = synthesize_case(inputs, target, REFERENCE_OF[target], model).image
            except CaseError as error:
                log.warning("%s is not scored on %s: %s", subject, target, error)
                continue
            made = to_array(image, inputs[REFERENCE_OF[target]].grid)
            values = image_scores(made, volumes[target].data, tumour, first.grid.lps_spacing)
            results.append(VolumeScores(subject, target, values))
        log.info("%s: SSIM in the brain %s", subject, _brief(results[before:]))
    return results


def score_segmenter3d(
    network: nn.Module,
    cases: Iterable[Case],
    masks: Mapping[str, Path],
    window: tuple[int, int, int],
    device: torch.device,
    precision: torch.dtype,
    normalization: Normalization = NORMALIZATION,
) -> list[VolumeScores]:
    """Segment each complete subject in 3D from its real sequences, and score it.

    Args:
        network: a 3D segmenter.
        window: sides in voxels of what it sees at once.
        normalization: scheme of its inputs.
    """
    segmenter = TumourSegmenter(network.eval(), normalization, window, device, precision)
    results = []
    for subject, volumes in load_complete(cases):
        first = volumes[MODALITIES[0]]
        truth = load_labels(masks.get(subject), first.grid, subject)
        if truth is not None:
            labels = segmenter.segment({m: v.data for m, v in volumes.items()})
            results.append(VolumeScores(subject, "seg", segmentation_scores(labels, truth, first.grid.lps_spacing)))
    return results


def score_tissnet(
    network: TissNet,
    spec: TissNetSpec,
    cases: Iterable[Case],
    masks: Mapping[str, Path],
    device: torch.device,
    precision: torch.dtype,
) -> list[VolumeScores]:
    """Segment each complete subject without each target sequence, and score it; `seg` is the complete exam."""
    segmenter = CompletingSegmenter(network.eval(), spec, device, precision)
    results = []
    for subject, volumes in load_complete(cases):
        first = volumes[MODALITIES[0]]
        truth = load_labels(masks.get(subject), first.grid, subject)
        if truth is not None:
            data = {m: v.data for m, v in volumes.items()}
            for target in (*spec.targets, *([None] if spec.complete else [])):
                scores = segmentation_scores(segmenter.run(data, target).labels, truth, first.grid.lps_spacing)
                results.append(VolumeScores(subject, target or "seg", scores))
    return results


def means(scores: Sequence[VolumeScores]) -> dict[str, float]:
    """Average every metric over all volumes; those that are NaN everywhere are left out."""
    summary = summarise(scores).get("all", {})
    return {name: float(values["mean"]) for name, values in summary.items() if values["n"]}


def scores_of(rows: Sequence[VolumeScores], targets: Sequence[Modality] = ()) -> ModelScores:
    """Summarise a model's scores for the lineage: subjects, overall means, means of each target.

    Raises:
        UsageError: there are none.
    """
    if not rows:
        raise UsageError("no subject of --score-on could be scored; see the messages above.")
    subjects = tuple(dict.fromkeys(s.subject for s in rows))
    by_target = {m: rounded_means([s for s in rows if s.modality == m]) for m in targets}
    return ModelScores(subjects=subjects, mean=rounded_means(rows), by_target=by_target)


def rounded_means(rows: Sequence[VolumeScores]) -> dict[str, float]:
    """Give the means of every metric as a lineage keeps them."""
    return rounded(means(rows))


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    """Round metrics to the digits that a lineage keeps."""
    return {k: round(v, 6) for k, v in values.items()}


def _brief(scores: Sequence[VolumeScores]) -> str:
    return ", ".join(f"{s.modality} {s.values['ssim_brain']:.3f}" for s in scores)


def score_segmenter2d(
    network: Segmenter2d,
    cases: Iterable[Case],
    masks: Mapping[str, Path],
    recipe: SliceData,
    device: torch.device,
    normalization: Normalization = NORMALIZATION,
) -> list[VolumeScores]:
    """Segment each complete subject from its real sequences, views averaged, and score it."""
    results = []
    for subject, volumes in load_complete(cases):
        truth = load_labels(masks.get(subject), volumes[MODALITIES[0]].grid, subject)
        if truth is None:
            continue
        arrays = {m: v.data for m, v in volumes.items()}
        intensities = {m: measure(a, m, normalization) for m, a in arrays.items()}
        normalized = [normalize(arrays[m], intensities[m], BACKGROUND) for m in MODALITIES]
        labels = segment_slices(
            network, normalized, vote_foreground(arrays), recipe.views, recipe.canvas, subject, device, BACKGROUND
        )
        spacing = volumes[MODALITIES[0]].grid.lps_spacing
        results.append(VolumeScores(subject, "seg", segmentation_scores(labels, truth, spacing)))
    return results
