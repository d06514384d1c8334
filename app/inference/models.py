"""Models that are ready to run: a network over slices, or the voxel-wise regression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from app.core.constants import MODALITIES, Modality
from app.core.errors import CaseError
from app.inference.device import Runtime
from app.inference.prepared import Prepared
from app.inference.refinement import VolumeRefiner
from app.inference.slicewise.slice_predictor import SlicePredictor
from app.inference.slicewise.view_fusion import FusedPrediction, FusionOptions, tta_passes
from app.inference.trial import STEP, trial_ssim
from app.networks.voxelwise_regression import VoxelwiseRegression
from app.preprocessing.expected_quality import INPUTS, Expectation, QualityModel
from app.preprocessing.normalization import Intensity, Normalization
from app.preprocessing.target_intensity import IntensityPredictor
from app.registry.identity import Identity
from app.registry.spec import GeneratorSpec, RegressionSpec


class Model(Protocol):
    """A model that is ready to run, with the models that it leaves sequences to."""

    @property
    def identity(self) -> Identity:
        """Name and checksum of the weights."""
        ...

    @property
    def spec(self) -> GeneratorSpec | RegressionSpec:
        """What it is."""
        ...

    @property
    def runtime(self) -> Runtime | None:
        """How its network is run; None where there is no network."""
        ...

    @property
    def fusion(self) -> FusionOptions | None:
        """How its views become one volume; None where it has no views."""
        ...

    @property
    def refiner(self) -> VolumeRefiner | None:
        """The second stage that its volumes pass through, if there is one."""
        ...

    @property
    def specialists(self) -> Mapping[Modality, Model]:
        """Models that make some of the sequences in its place."""
        ...

    @property
    def name(self) -> str:
        """Its name, with its refiner's, for records and headers."""
        ...

    @property
    def targets(self) -> tuple[Modality, ...]:
        """The sequences that it makes, specialists included."""
        ...

    @property
    def contrast(self) -> float:
        """Share of the way to a scan's spread (`app.inference.postprocessing.stretch`)."""
        ...

    @property
    def highlights(self) -> float:
        """Factor on what is brighter than the median (`app.inference.postprocessing.lift_highlights`)."""
        ...

    @property
    def detail(self) -> float:
        """Factor on fine detail (`app.inference.fine_detail`)."""
        ...

    @property
    def min_expected_ssim(self) -> float | None:
        """Expected SSIM below which a sequence is refused; None where nothing is."""
        ...

    def model_for(self, target: Modality, slice_mm: float = 0.0) -> Model:
        """Choose the model that makes a sequence: a specialist, or this one.

        Args:
            slice_mm: of the thickest slices that the exam was scanned with; some specialists are for thin ones.
        """
        ...

    def precompute(self, prepared: Prepared) -> None:
        """Compute what later steps read of a case, in the thread that reads it."""
        ...

    def predict(self, prepared: Prepared, target: Modality) -> FusedPrediction:
        """Predict a sequence in model space, by this model and not by a specialist.

        Raises:
            CaseError: the model does not make that sequence, or does not fit into memory.
        """
        ...

    def intensity_of(self, target: Modality, measured: Mapping[Modality, Intensity]) -> Intensity:
        """Predict how bright a sequence is, in the file's units.

        Args:
            measured: the intensities of the present sequences.
        """
        ...

    def expect(self, predicted: FusedPrediction, prepared: Prepared, target: Modality) -> Expectation | None:
        """Tell what a prediction of this model is expected to be worth; None where nobody fitted that.

        Raises:
            CaseError: the network does not fit into memory.
        """
        ...


@dataclass(frozen=True)
class NetworkModel:
    """A network that sees slices, with its refiner and its specialists.

    Attributes:
        intensity: predictor of the target's brightness; None where the scheme's constants hold.
        predictor: the network.
        fusion: how its views become one volume.
        intensity_choice: what its intensity code is, as `ModelOptions.intensity`.
        expected_quality: tells what is expected of its sequences; None where nobody fitted that.
        min_expected_ssim: expected SSIM below which a sequence is refused; None where nothing is.
        trial_model: whose network is tried on the exam itself, for what is expected; this one if None.
    """

    identity: Identity
    spec: GeneratorSpec
    intensity: IntensityPredictor | None
    predictor: SlicePredictor
    runtime: Runtime
    fusion: FusionOptions = field(default_factory=FusionOptions)
    refiner: VolumeRefiner | None = None
    specialists: Mapping[Modality, NetworkModel] = field(default_factory=dict)
    intensity_choice: str = "mean"
    expected_quality: QualityModel | None = None
    min_expected_ssim: float | None = None
    trial_model: NetworkModel | None = None

    @property
    def name(self) -> str:
        """Its name, with its refiner's."""
        return self.identity.name if self.refiner is None else f"{self.identity.name}+{self.refiner.identity.name}"

    @property
    def targets(self) -> tuple[Modality, ...]:
        """The sequences that it makes, specialists included."""
        return tuple(m for m in MODALITIES if m in self.spec.targets or m in self.specialists)

    @property
    def contrast(self) -> float:
        """Share of the way to a scan's spread: the refiner's, which blurs less, else the network's."""
        refined = None if self.refiner is None else self.refiner.spec.contrast
        return self.spec.contrast if refined is None else refined

    @property
    def highlights(self) -> float:
        """Factor on what is brighter than the median: the network's, as `detail`."""
        return self.spec.highlights if self.refiner is None or self.refiner.spec.contrast is None else 1.0

    @property
    def detail(self) -> float:
        """Factor on fine detail: the network's, but behind a refiner with a contrast of its own, which blurs less."""
        return self.spec.detail if self.refiner is None or self.refiner.spec.contrast is None else 1.0

    def model_for(self, target: Modality, slice_mm: float = 0.0) -> NetworkModel:
        """Choose a specialist or this model, with its refiner where that refines the sequence."""
        model = self.specialists.get(target, self)
        thickest = model.spec.max_slice_mm
        if model is not self and thickest is not None and slice_mm > thickest:
            # Without its specialists, lest one of them be chosen after all.
            model = replace(self, specialists={})
        refines = model.refiner is None or target in model.refiner.targets
        return model if refines else replace(model, refiner=None)

    def precompute(self, prepared: Prepared) -> None:
        """Compute z-scores unless the device does, and statistics where something is told from them."""
        if not self.predictor.normalizes or self.refiner is not None:
            _ = prepared.normalized
        if self.expected_quality is not None:
            _ = prepared.statistics

    def predict(self, prepared: Prepared, target: Modality) -> FusedPrediction:
        """Predict a sequence from slices of every view, fused; see `Model.predict`."""
        spec = self.spec
        if target not in spec.targets:
            raise CaseError(f"model {self.identity.name!r} makes {', '.join(spec.targets)} and not {target}; "
                            "name another with --model.")  # fmt: skip
        if lacking := [m for m in spec.needed if m not in prepared.arrays]:
            raise CaseError(f"model {self.identity.name!r} makes {target} from all other sequences, and the exam lacks "
                            f"{', '.join(lacking)}; name another with --model.")  # fmt: skip
        passes = tta_passes(prepared.foreground, spec.views, spec.canvas, self.fusion.flip, self.fusion.step)
        return self.predictor.predict(prepared, target, passes, self.fusion, self.median_of(target, prepared))

    def intensity_of(self, target: Modality, measured: Mapping[Modality, Intensity]) -> Intensity:
        """Predict how bright a sequence is; see `Model.intensity_of`."""
        return _intensity(self.intensity, self.spec.normalization, target, measured)

    def expect(self, predicted: FusedPrediction, prepared: Prepared, target: Modality) -> Expectation | None:
        """Tell what a prediction is expected to be worth; see `Model.expect`."""
        if self.expected_quality is None:
            return None
        tried, fitted = self.trial_model or self, self.expected_quality
        is_known = predicted.disagreement is not None and len(prepared.arrays) == INPUTS
        is_tried = is_known and fitted.is_for(tried.identity.sha256)
        # Where slices are left out, so are those of the trial.
        trial = trial_ssim(prepared, tried, STEP * self.fusion.step) if is_tried else None
        return fitted.expect(prepared.statistics, target, trial, predicted.disagreement)

    def median_of(self, target: Modality, prepared: Prepared) -> float | None:
        """Choose the target's median for the intensity code; None where the network has none."""
        prior = self.spec.intensity_prior
        return None if prior is None else prior.value(target, self.intensity_choice, prepared.measured)


@dataclass(frozen=True)
class RegressionModel:
    """The voxel-wise regression: numpy on a processor; any sequences in, any other one out.

    Attributes:
        intensity: predictor of the target's brightness; None where the scheme's constants hold.
    """

    identity: Identity
    spec: RegressionSpec
    intensity: IntensityPredictor | None
    regression: VoxelwiseRegression

    @property
    def runtime(self) -> None:
        """None: there is no network."""
        return None

    @property
    def fusion(self) -> None:
        """None: there are no views."""
        return None

    @property
    def refiner(self) -> None:
        """None: nothing is refined."""
        return None

    @property
    def specialists(self) -> Mapping[Modality, Model]:
        """Nothing: it makes every sequence itself."""
        return {}

    @property
    def name(self) -> str:
        """Its name."""
        return self.identity.name

    @property
    def targets(self) -> tuple[Modality, ...]:
        """All four sequences."""
        return self.spec.targets

    @property
    def contrast(self) -> float:
        """0: its result is not stretched."""
        return 0.0

    @property
    def highlights(self) -> float:
        """1: what is bright stays as it is."""
        return 1.0

    @property
    def detail(self) -> float:
        """1: its detail stays as it is."""
        return 1.0

    @property
    def min_expected_ssim(self) -> None:
        """None: it refuses nothing."""
        return None

    def model_for(self, target: Modality, slice_mm: float = 0.0) -> RegressionModel:
        """Return itself."""
        return self

    def precompute(self, prepared: Prepared) -> None:
        """Compute z-scores."""
        _ = prepared.normalized

    def predict(self, prepared: Prepared, target: Modality) -> FusedPrediction:
        """Predict a sequence voxel by voxel; see `Model.predict`."""
        return FusedPrediction(self.regression.predict(prepared.normalized, target, prepared.foreground))

    def intensity_of(self, target: Modality, measured: Mapping[Modality, Intensity]) -> Intensity:
        """Predict how bright a sequence is; see `Model.intensity_of`."""
        return _intensity(self.intensity, self.spec.normalization, target, measured)

    def expect(self, predicted: FusedPrediction, prepared: Prepared, target: Modality) -> None:
        """Tell nothing: nobody fitted that."""


def _intensity(
    predictor: IntensityPredictor | None,
    normalization: Normalization,
    target: Modality,
    measured: Mapping[Modality, Intensity],
) -> Intensity:
    """Predict how bright a sequence is; the scheme's constant where there is no predictor."""
    return normalization.intensities[target] if predictor is None else predictor.predict(measured, target)
