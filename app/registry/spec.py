"""What a model is, by kind: everything that a run must know of it beside its weights.

One checked description serves the manifest on disk, candidates that are still in training, and the pipeline. It is
frozen, refuses unknown keys, and needs no torch.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

from app.core.config import FusionName
from app.core.constants import CLASSES, MODALITIES, VIEWS, Modality, View
from app.networks.architectures import (
    CgSamrConfig,
    Ds3NetConfig,
    EnhancerConfig,
    HfGanConfig,
    RefinerConfig,
    Segmenter2dConfig,
    Segmenter3dConfig,
    TissNetConfig,
    UNetConfig,
)
from app.preprocessing.normalization import Normalization
from app.preprocessing.slices import Canvas
from app.preprocessing.target_intensity import IntensityPrior

Shape = (
    HfGanConfig
    | UNetConfig
    | Ds3NetConfig
    | Segmenter2dConfig
    | Segmenter3dConfig
    | RefinerConfig
    | EnhancerConfig
    | TissNetConfig
    | CgSamrConfig
)
AnyShape = TypeVar("AnyShape", bound=Shape)

#: Most levels and blocks of a network, channels of a level, and voxels of a window's side: far beyond any that fits a
#: machine.
_LEVELS: Final = 8
_BLOCKS: Final = 64
_CHANNELS: Final = 4096
_SIDE: Final = 1024


def _check_shape(shape: AnyShape) -> AnyShape:
    """Refuse a shape that no network can have: it must be said at once, and not as lack of memory."""
    if not 1 <= len(shape.widths) <= _LEVELS or not all(1 <= w <= _CHANNELS for w in shape.widths):
        raise ValueError(f"widths must be 1 to {_LEVELS} numbers from 1 to {_CHANNELS}")
    if isinstance(shape, Ds3NetConfig) and (not 1 <= shape.blocks <= _BLOCKS or shape.sources != len(MODALITIES) - 1):
        raise ValueError(f"blocks must be 1 to {_BLOCKS}, and sources {len(MODALITIES) - 1}")
    numbers = [getattr(shape, name, 0.0) for name in ("background", "confidence_scale")]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("background and confidence_scale must be finite")
    return shape


def _check_canvas(canvas: Canvas) -> Canvas:
    if not all(n <= _SIDE for size in canvas.sizes.values() for n in size):
        raise ValueError(f"a canvas has at most {_SIDE} rows and columns")
    return canvas


def _check_normalization(normalization: Normalization) -> Normalization:
    if not 0 < normalization.percentile <= 100:
        raise ValueError("percentile must be above 0 and at most 100")
    if normalization.background is not None and not math.isfinite(normalization.background):
        raise ValueError("background must be finite")
    for intensity in normalization.intensities.values():
        if not math.isfinite(intensity.mean) or not 0 < intensity.std < math.inf or not intensity.clip > 0:
            raise ValueError("intensities must be finite, std and clip above 0")
    return normalization


Side = Annotated[int, Field(ge=1, le=_SIDE)]
Sides = tuple[Side, Side, Side]
Share = Annotated[float, Field(ge=0, le=1)]
CheckedCanvas = Annotated[Canvas, AfterValidator(_check_canvas)]
CheckedNormalization = Annotated[Normalization, AfterValidator(_check_normalization)]


class Strict(BaseModel):
    """Base of everything that is read from a folder of weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RegressionSpec(Strict):
    """The voxel-wise regression: any sequences in, any other one out."""

    kind: Literal["regression"] = "regression"
    normalization: CheckedNormalization

    @property
    def targets(self) -> tuple[Modality, ...]:
        """The sequences that it makes."""
        return MODALITIES


class GeneratorSpec(Strict):
    """A network that makes sequences slice by slice.

    Attributes:
        architecture: shape of the network.
        normalization: scheme of its inputs.
        canvas: window of each view's slices.
        views: views that it is run on, in the order of `VIEWS`.
        targets: sequences that it makes by itself, in challenge order.
        fusion: how its views become one volume (`app.inference.slicewise.view_fusion`).
        flip_average: whether the mirrored exam is run as well.
        contrast: share of the way by which its result is brought to a scan's spread (`app.inference.postprocessing`).
        highlights: factor on what of its result is brighter than the median (`app.inference.postprocessing`).
        detail: factor on the fine detail of its result (`app.inference.fine_detail`).
        intensity_prior: distribution of the targets' medians, for networks with an intensity code.
        refiner: name of its 3D refiner.
        refine: whether the refiner runs unless a user says otherwise.
        specialists: per sequence, the model that makes it instead.
        max_slice_mm: of a specialist: exams whose slices are thicker are left to the model that names it.
    """

    kind: Literal["generator"] = "generator"
    architecture: Annotated[
        HfGanConfig | UNetConfig | Ds3NetConfig, Field(discriminator="network"), AfterValidator(_check_shape)
    ]
    normalization: CheckedNormalization
    canvas: CheckedCanvas
    views: Annotated[tuple[View, ...], Field(min_length=1)]
    targets: Annotated[tuple[Modality, ...], Field(min_length=1)] = MODALITIES
    fusion: FusionName = "mean"
    flip_average: bool = False
    contrast: Share = 0.0
    highlights: Annotated[float, Field(ge=0, le=3)] = 1.0
    detail: Annotated[float, Field(ge=0, le=3)] = 1.0
    intensity_prior: IntensityPrior | None = None
    refiner: str | None = None
    refine: bool = False
    specialists: dict[Modality, str] = Field(default_factory=dict)
    max_slice_mm: Annotated[float, Field(gt=0)] | None = None

    @field_validator("architecture", mode="before")
    @classmethod
    def _gate_of_older_imports(cls, stated: Any) -> Any:
        """What an older version imported does not state its gate: it is the released one."""
        if isinstance(stated, dict) and stated.get("position") == "learned":
            return {"gate": "released", **stated}
        return stated

    @field_validator("views")
    @classmethod
    def _ordered_views(cls, views: tuple[View, ...]) -> tuple[View, ...]:
        return tuple(v for v in VIEWS if v in views)

    @field_validator("targets")
    @classmethod
    def _ordered_targets(cls, targets: tuple[Modality, ...]) -> tuple[Modality, ...]:
        return tuple(m for m in MODALITIES if m in targets)

    @model_validator(mode="after")
    def _check_canvas_and_intensities(self) -> GeneratorSpec:
        if lacking := [v for v in self.views if v not in self.canvas.sizes]:
            raise ValueError(f"the canvas lacks the view {lacking[0]}")
        if self.architecture.intensity_code and (self.intensity_prior is None or self.normalization.scheme != "range"):
            raise ValueError("a network with an intensity code needs intensity_prior and the normalization `range`")
        if self.intensity_prior is not None:
            _check_prior(self.intensity_prior, self.targets)
        if isinstance(self.architecture, Ds3NetConfig) and (
            len(self.targets) != 1 or (self.normalization.scheme, self.normalization.background) != ("range", -1.0)
        ):
            raise ValueError("a ds3net makes one target, and needs the normalization `range` with background -1")
        if self.contrast > 0 and self.normalization.scheme != "volume":
            raise ValueError("contrast is for the normalization `volume`, whose z-scores have a deviation of 1")
        return self

    @property
    def needed(self) -> tuple[Modality, ...]:
        """The sequences without which it makes nothing; none for a network that takes any."""
        return tuple(m for m in MODALITIES if m not in self.targets) if self.architecture.network == "ds3net" else ()

    @property
    def has_confidence(self) -> bool:
        """Whether it predicts its own error."""
        return self.architecture.confidence != "none"


def _check_prior(prior: IntensityPrior, targets: tuple[Modality, ...]) -> None:
    both = (prior.means, prior.deviations)
    if not all(m in values and math.isfinite(values[m]) for m in targets for values in both):
        raise ValueError("intensity_prior must have finite numbers for every target")


class Segmenter2dSpec(Strict):
    """A network that finds tumours in slices, and teaches generators."""

    kind: Literal["segmenter2d"] = "segmenter2d"
    architecture: Annotated[Segmenter2dConfig, AfterValidator(_check_shape)]
    normalization: CheckedNormalization
    canvas: CheckedCanvas


class Segmenter3dSpec(Strict):
    """A network that finds tumours in volumes.

    Attributes:
        window: sides in voxels of what it sees at once.
    """

    kind: Literal["segmenter3d"] = "segmenter3d"
    architecture: Annotated[Segmenter3dConfig, AfterValidator(_check_shape)]
    normalization: CheckedNormalization
    window: Sides


class FirstStage(Strict):
    """The generator that a refiner was trained behind.

    Attributes:
        model: its name then.
        sha256: of its weights.
        fusion: its views and their fusion, such as `axial-sagittal-coronal-mean+flip`; None in old records.
        specialists: sha256 of the specialists that made sequences for it; None for none.
    """

    model: str
    sha256: str
    fusion: str | None = None
    specialists: dict[Modality, str] | None = None


class RefinerSpec(Strict):
    """A network that corrects a generator's volume in 3D.

    Attributes:
        window: sides in voxels of what it sees at once.
        overlap: share of a window that the next one covers again.
        contrast: replaces the generator's where it is given.
        first_stage: the generator that it was trained behind; None for one that suits any.
    """

    kind: Literal["refiner"] = "refiner"
    architecture: Annotated[
        RefinerConfig | EnhancerConfig, Field(discriminator="network"), AfterValidator(_check_shape)
    ]
    normalization: CheckedNormalization
    window: Sides
    overlap: Annotated[float, Field(ge=0, lt=1)]
    contrast: Share | None = None
    first_stage: FirstStage | None = None


class TissNetSpec(Strict):
    """A network that makes a sequence and segments the tumour in one pass.

    Attributes:
        targets: the sequences that it makes, in challenge order, each a case of its own.
        complete: whether its last case are exams that lack nothing.
        sources: the sequences that it is given, in challenge order. A target among them is withheld where it is made.
        window: sides in voxels of what it sees at once.
    """

    kind: Literal["tissnet"] = "tissnet"
    architecture: Annotated[TissNetConfig, AfterValidator(_check_shape)]
    normalization: CheckedNormalization
    targets: tuple[Modality, ...]
    complete: bool = False
    sources: Annotated[tuple[Modality, ...], Field(min_length=1)]
    window: Sides

    @field_validator("targets", "sources")
    @classmethod
    def _ordered(cls, sequences: tuple[Modality, ...]) -> tuple[Modality, ...]:
        return tuple(m for m in MODALITIES if m in sequences)

    @model_validator(mode="after")
    def _check_numbers(self) -> TissNetSpec:
        if self.architecture.sources != len(self.sources):
            raise ValueError("the architecture takes another number of sources")
        if not self.cases or self.architecture.cases != self.cases:
            raise ValueError("the architecture knows another number of cases")
        return self

    @property
    def cases(self) -> int:
        """Number of kinds of exam: those that lack a target, and complete ones."""
        return len(self.targets) + self.complete

    def case_of(self, target: Modality | None) -> int:
        """Give the number of a kind of exam.

        Args:
            target: the sequence to make; None for an exam that lacks nothing.

        Raises:
            ValueError: the network does not know such exams.
        """
        if target is None and not self.complete:
            raise ValueError("the model needs an exam that lacks a sequence")
        if target is not None and target not in self.targets:
            raise ValueError(f"the model does not make {target}")
        return len(self.targets) if target is None else self.targets.index(target)


class CgSamrSpec(Strict):
    """A network that makes whole exams from a lesion's outline; its file `atlas` tells it of anatomy.

    Attributes:
        canvas: window of its axial slices.
    """

    kind: Literal["cgsamr"] = "cgsamr"
    architecture: Annotated[CgSamrConfig, AfterValidator(_check_shape)]
    normalization: CheckedNormalization
    canvas: CheckedCanvas

    @model_validator(mode="after")
    def _check_exam(self) -> CgSamrSpec:
        if (self.architecture.sequences, self.architecture.labels) != (len(MODALITIES), CLASSES - 1):
            raise ValueError("a published network makes the four sequences of the three lesion labels")
        if (self.normalization.scheme, self.normalization.background) != ("range", -1.0):
            raise ValueError("a cgsamr needs the normalization `range` with background -1")
        if "axial" not in self.canvas.sizes:
            raise ValueError("the canvas lacks the view axial")
        return self


Kind = Literal["regression", "generator", "segmenter2d", "segmenter3d", "refiner", "tissnet", "cgsamr"]
ModelSpec = Annotated[
    RegressionSpec | GeneratorSpec | Segmenter2dSpec | Segmenter3dSpec | RefinerSpec | TissNetSpec | CgSamrSpec,
    Field(discriminator="kind"),
]
#: Reads a specification of any kind.
SPEC: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)
