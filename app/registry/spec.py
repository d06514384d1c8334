"""What a model is, by kind: everything that a run must know of it beside its weights.

One checked description serves the manifest on disk, candidates that are still in training, and the pipeline. It is
frozen, refuses unknown keys, and needs no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator, model_validator

from app.core.config import FusionName
from app.core.constants import MODALITIES, VIEWS, Modality, View
from app.networks.architectures import (
    EnhancerConfig,
    HfGanConfig,
    RefinerConfig,
    Segmenter2dConfig,
    Segmenter3dConfig,
    UNetConfig,
)
from app.preprocessing.normalization import Normalization
from app.preprocessing.slices import Canvas
from app.preprocessing.target_intensity import IntensityPrior

Sides = tuple[int, int, int]


class Strict(BaseModel):
    """Base of everything that is read from a folder of weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RegressionSpec(Strict):
    """The voxel-wise regression: any sequences in, any other one out."""

    kind: Literal["regression"] = "regression"
    normalization: Normalization

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
        fusion: how its views become one volume (`app.inference.view_fusion`).
        flip_average: whether the mirrored exam is run as well.
        contrast: share of the way by which its result is brought to a scan's spread (`app.inference.postprocessing`).
        intensity_prior: distribution of the targets' medians, for networks with an intensity code.
        refiner: name of its 3D refiner.
        refine: whether the refiner runs unless a user says otherwise.
        specialists: per sequence, the model that makes it instead.
    """

    kind: Literal["generator"] = "generator"
    architecture: Annotated[HfGanConfig | UNetConfig, Field(discriminator="network")]
    normalization: Normalization
    canvas: Canvas
    views: tuple[View, ...]
    targets: tuple[Modality, ...] = MODALITIES
    fusion: FusionName = "mean"
    flip_average: bool = False
    contrast: float = 0.0
    intensity_prior: IntensityPrior | None = None
    refiner: str | None = None
    refine: bool = False
    specialists: dict[Modality, str] = Field(default_factory=dict)

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
    def _check_intensity_code(self) -> GeneratorSpec:
        if self.architecture.intensity_code and (self.intensity_prior is None or self.normalization.scheme != "range"):
            raise ValueError("a network with an intensity code needs intensity_prior and the normalization `range`")
        if self.contrast > 0 and self.normalization.scheme != "volume":
            raise ValueError("contrast is for the normalization `volume`, whose z-scores have a deviation of 1")
        return self

    @property
    def has_confidence(self) -> bool:
        """Whether it predicts its own error."""
        return self.architecture.confidence != "none"


class Segmenter2dSpec(Strict):
    """A network that finds tumours in slices, and teaches generators."""

    kind: Literal["segmenter2d"] = "segmenter2d"
    architecture: Segmenter2dConfig
    normalization: Normalization
    canvas: Canvas


class Segmenter3dSpec(Strict):
    """A network that finds tumours in volumes.

    Attributes:
        window: sides in voxels of what it sees at once.
    """

    kind: Literal["segmenter3d"] = "segmenter3d"
    architecture: Segmenter3dConfig
    normalization: Normalization
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
    architecture: Annotated[RefinerConfig | EnhancerConfig, Field(discriminator="network")]
    normalization: Normalization
    window: Sides
    overlap: Annotated[float, Field(ge=0, lt=1)]
    contrast: float | None = None
    first_stage: FirstStage | None = None


Kind = Literal["regression", "generator", "segmenter2d", "segmenter3d", "refiner"]
ModelSpec = Annotated[
    RegressionSpec | GeneratorSpec | Segmenter2dSpec | Segmenter3dSpec | RefinerSpec, Field(discriminator="kind")
]
#: Reads a specification of any kind.
SPEC: TypeAdapter[ModelSpec] = TypeAdapter(ModelSpec)
