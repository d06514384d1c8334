"""From a subject's present sequences to the missing one. `synthesize_case` is the whole way, step by step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import nibabel as nib
import numpy as np

from app import __version__
from app.core.constants import MODALITIES, Modality
from app.core.errors import CaseError
from app.core.types import VolumeArray
from app.data.nifti_reader import Volume
from app.data.nifti_writer import scale_to_type, to_image
from app.inference.device import Runtime
from app.inference.postprocessing import check_finite, clean, stretch
from app.inference.prepared import Prepared
from app.inference.refinement import VolumeRefiner
from app.inference.slice_predictor import SlicePredictor
from app.inference.view_fusion import FusedPrediction, FusionOptions, tta_passes
from app.networks.voxelwise_regression import VoxelwiseRegression
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import Intensity, measure, restore
from app.preprocessing.target_intensity import IntensityPredictor, MedianPredictor
from app.registry.manifest import Identity
from app.registry.spec import GeneratorSpec, RegressionSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A model that is ready to run: a network behind a `predictor`, or else the voxel-wise `regression`.

    What a network makes passes through the `refiner`, if there is one.

    Attributes:
        fusion: how the network's views become one volume.
        specialists: models that make some of the sequences in its place.
    """

    identity: Identity
    spec: GeneratorSpec | RegressionSpec
    intensity: IntensityPredictor | None
    regression: VoxelwiseRegression | None = None
    predictor: SlicePredictor | None = None
    runtime: Runtime | None = None
    fusion: FusionOptions = field(default_factory=FusionOptions)
    refiner: VolumeRefiner | None = None
    specialists: Mapping[Modality, Model] = field(default_factory=dict)

    @property
    def makes(self) -> tuple[Modality, ...]:
        """The sequences that it makes, specialists included."""
        return tuple(m for m in MODALITIES if m in self.spec.targets or m in self.specialists)

    def model_for(self, target: Modality) -> Model:
        """The model that makes a sequence: its specialist, or else this one; with its refiner if that refines it."""
        maker = self.specialists.get(target, self)
        refined = maker.refiner is None or target in maker.refiner.makes
        return maker if refined else replace(maker, refiner=None)

    @property
    def name(self) -> str:
        """What is said of it: its name, and its refiner's."""
        return self.identity.name if self.refiner is None else f"{self.identity.name}+{self.refiner.identity.name}"

    @property
    def background(self) -> float:
        """Score of background voxels; any where the scheme names none, since they are set to 0 in the end."""
        stated = self.spec.normalization.background
        return 0.0 if stated is None else stated

    @property
    def contrast(self) -> float:
        """How far what the network makes is brought to a scan's spread (`app.inference.postprocessing.stretch`).

        A refined volume is less blurred, so the refiner's own word on it counts before the first stage's.
        """
        stated = self.spec.contrast if isinstance(self.spec, GeneratorSpec) else 0.0
        refined = None if self.refiner is None else self.refiner.spec.contrast
        return stated if refined is None else refined

    @cached_property
    def prior(self) -> MedianPredictor | None:
        """What the network is told of the target's median; None where it takes no such thing."""
        return self.spec.intensity_conditioning if isinstance(self.spec, GeneratorSpec) else None

    def intensity_of(self, target: Modality, inputs: Mapping[Modality, Intensity]) -> Intensity:
        """How bright the sequence to be made is, in the file's units."""
        if self.intensity is None:
            return self.spec.normalization.intensities[target]
        return self.intensity.predict(inputs, target)


def synthesize_case(
    volumes: Mapping[Modality, Volume], target: Modality, reference: Modality, model: Model
) -> nib.Nifti1Image:
    """Makes one sequence of one subject.

    Args:
        volumes: one to three present sequences on one grid.
        target: the sequence to make, not among them.
        reference: the present sequence whose geometry, header and number type the result copies.
        model: what makes it.

    Raises:
        CaseError: the inputs have no brain in common, the network does not fit into memory, or the model does not make
            that sequence.
    """
    maker = model.model_for(target)
    prepared = prepare(volumes, maker)
    predicted = predict(prepared, target, maker)
    refined = refine(predicted, prepared, target, maker)
    return finish(refined.volume, prepared, target, reference, maker)


def prepare(volumes: Mapping[Modality, Volume], model: Model) -> Prepared:
    """Finds the brain and brings the inputs into model space.

    Raises:
        CaseError: the inputs have no brain in common.
    """
    scheme = model.spec.normalization
    arrays = {m: v.data for m, v in volumes.items()}
    foreground = vote_foreground(arrays)
    if not foreground.any():
        raise CaseError("the inputs have no voxel that is bright in most of them; check that they show one brain.")
    measured = {m: measure(a, m, scheme) for m, a in arrays.items()}
    prepared = Prepared(arrays, foreground, measured, {m: v.grid for m, v in volumes.items()}, scheme.background)
    if model.predictor is None or not model.predictor.normalizes or model.refiner is not None:
        # Here, in the thread that reads, and not in the one that the network waits for.
        _ = prepared.normalized
    if model.prior is not None and model.prior.coefficients:
        _ = prepared.medians
    return prepared


def predict(prepared: Prepared, target: Modality, model: Model) -> FusedPrediction:
    """Predict the target in model space.

    This model makes it, whether or not it has a specialist (`Model.model_for`).

    Raises:
        CaseError: the network does not fit into memory, or makes other sequences only.
    """
    spec = model.spec
    if target not in spec.targets:
        raise CaseError(f"model {model.identity.name!r} makes {', '.join(spec.targets)} and not {target}; "
                        "name another with --model.")  # fmt: skip
    if model.predictor is None:
        assert model.regression is not None
        return FusedPrediction(model.regression.predict(prepared.normalized, target, prepared.foreground))
    assert isinstance(spec, GeneratorSpec)
    prior, median = model.prior, None
    if prior is not None:
        median = prior.predict(prepared.measured, prepared.medians if prior.coefficients else {}, target)
    passes = tta_passes(prepared.foreground, spec.views, spec.canvas, model.fusion.flip)
    return model.predictor.predict(prepared, target, passes, model.fusion, median)


def refine(predicted: FusedPrediction, prepared: Prepared, target: Modality, model: Model) -> FusedPrediction:
    """`predict`'s result after the second, three-dimensional stage; itself where the model has none.

    How wrong the network expects to be stays what it is: the refiner has no opinion on it.

    Raises:
        CaseError: what would be refined is not finite, or the refiner does not fit into memory.
    """
    if model.refiner is None:
        return predicted
    # A refiner would make a smooth volume even of nothing, and nobody would know.
    check_finite(predicted.volume, prepared.foreground, model.identity.name)
    volume = model.refiner.refine(predicted.volume, prepared.normalized, target, prepared.foreground, model.background)
    return replace(predicted, volume=volume)


def finish(
    predicted: VolumeArray, prepared: Prepared, target: Modality, reference: Modality, model: Model
) -> nib.Nifti1Image:
    """Clears the background, brings scores back to intensities and puts them into the reference's geometry.

    Raises:
        CaseError: the scores are not finite (`app.inference.postprocessing.check_finite`).
    """
    check_finite(predicted, prepared.foreground, model.identity.name)
    intensity = model.intensity_of(target, prepared.measured)
    stretched = stretch(predicted, prepared.foreground, model.contrast)
    cleaned = clean(stretched, prepared.foreground, intensity, model.background)
    restored = restore(cleaned, intensity, prepared.foreground)
    grid = prepared.grids[reference]
    return to_image(scale_to_type(restored, grid), grid, describe(model, target, inputs=len(prepared.arrays)))


def finish_confidence(
    error: VolumeArray, prepared: Prepared, target: Modality, reference: Modality, model: Model
) -> nib.Nifti1Image:
    """The map of confidence c = 1 / (1 + b) as a float32 image in the reference's geometry.

    b is the absolute error that the network expects, in deviations of the real sequence over the brain (before
    `stretch`): c is near 1 where it is sure, 0.5 where it expects to err by one deviation, and 0 in the background.

    Args:
        error: b, float32, axes (left, posterior, superior).
    """
    confidence = np.where(prepared.foreground, 1 / (1 + error), np.float32(0))
    text = f"confidence of {describe(model, target, inputs=len(prepared.arrays))}"
    return to_image(confidence, prepared.grids[reference], text, dtype=np.dtype(np.float32))


def describe(model: Model, target: Modality, inputs: int) -> str:
    """What an output's header says of its origin, so that nobody takes it for a scan."""
    fusion = "" if model.regression is not None else f" {model.fusion.name}"
    return f"synthetic {target} from {inputs}, tetrad {__version__}, {model.name} {model.identity.sha256[:8]}{fusion}"
