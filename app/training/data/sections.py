"""Sections of recipes that say what is drawn from which subjects, and how it looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from app.core.constants import MODALITIES, VIEWS, Modality, View
from app.preprocessing.normalization import BACKGROUND, BRASYN25_INTENSITIES, Intensity, Normalization, Scheme
from app.preprocessing.slices import MULTIPLE, Canvas

T = TypeVar("T")
#: Lists of TOML and JSON are taken for tuples; what they hold is checked as strictly as everything else.
Listed = Annotated[T, Field(strict=False)]
Sides2d = Listed[tuple[int, int]]
Sides3d = Listed[tuple[int, int, int]]


class Section(BaseModel):
    """Base of a recipe's sections: frozen; unknown keys and values of another type are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def check_rules(rules: Mapping[str, bool]) -> None:
    """Check what no type says of a recipe.

    Args:
        rules: sentences, and whether they hold.

    Raises:
        ValueError: the first that does not hold.
    """
    for rule, holds in rules.items():
        if not holds:
            raise ValueError(rule)


class DataRecipe(Section):
    """Choice of subjects and of what is drawn from them.

    Attributes:
        tumour_share: probability that a slice shows the tumour, or a patch is centred on it, where the subject has any.
        held_out: number of subjects, drawn by the seed, that are kept for validation and never trained on.
        simulated_share: probability that a slice or patch is of an exam of `--simulated`.
    """

    tumour_share: float = 0.0
    held_out: int = 0
    simulated_share: float = 0.0

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        check_rules(
            {
                "data.tumour_share is a probability": 0 <= self.tumour_share <= 1,
                "data.held_out must not be negative": self.held_out >= 0,
                "data.simulated_share must be from 0 to below 1": 0 <= self.simulated_share < 1,
            }
        )
        return self


class SliceData(DataRecipe):
    """Choice of slices.

    Attributes:
        views: views that slices are drawn from, and that the exported model is run on.
        axial, sagittal, coronal: the canvas: rows and columns per view, multiples of 16.
        centre: whether the canvas is centred on the `brain`, or on the `volume` with whatever surrounds it.
        min_brain_pixels: slices with fewer are left out.
        min_tumour_share: a slice shows the tumour when this share of its canvas is tumour.
        balance_types: draw every tumour type (from the subjects' names) equally often.
    """

    views: Listed[tuple[View, ...]] = VIEWS
    axial: Sides2d = (144, 176)
    sagittal: Sides2d = (176, 144)
    coronal: Sides2d = (144, 144)
    centre: Literal["brain", "volume"] = "brain"
    min_brain_pixels: int = 2000
    min_tumour_share: float = 0.001
    balance_types: bool = True

    @property
    def canvas(self) -> Canvas:
        """Window sizes per view."""
        return Canvas({"axial": self.axial, "sagittal": self.sagittal, "coronal": self.coronal}, self.centre)

    @model_validator(mode="after")
    def _check_slices(self) -> Self:
        sides = (*self.axial, *self.sagittal, *self.coronal)
        check_rules(
            {
                "data.views must name one view or more": bool(self.views),
                f"data.axial, sagittal and coronal must be multiples of {MULTIPLE}": all(
                    n > 0 and n % MULTIPLE == 0 for n in sides
                ),
            }
        )
        return self


class PatchData(DataRecipe):
    """Choice of 3D patches.

    Attributes:
        patch: sides in voxels of what the network sees at once, multiples of 16.
    """

    patch: Sides3d = (96, 96, 96)

    @model_validator(mode="after")
    def _check_patch(self) -> Self:
        whole = all(n > 0 and n % MULTIPLE == 0 for n in self.patch)
        check_rules({f"data.patch must be three multiples of {MULTIPLE}": whole})
        return self


class MissingData(Section):
    """Choice of the sequences that are missing.

    Attributes:
        single_missing: probability that only the target is missing; else one or two more sequences are.
    """

    single_missing: float = 1.0

    @model_validator(mode="after")
    def _check_missing(self) -> Self:
        check_rules({"data.single_missing is a probability": 0 <= self.single_missing <= 1})
        return self


class SequenceIntensity(Section):
    """Constants of one sequence, in the files' units.

    Attributes:
        mean, std: of the non-zero voxels of all training subjects, clipped.
        clip: the value that brighter voxels get.
    """

    mean: float
    std: float
    clip: float

    @model_validator(mode="after")
    def _check_constants(self) -> Self:
        check_rules({"normalization.intensities: std and clip must be above 0": min(self.std, self.clip) > 0})
        return self


class NormalizationRecipe(Section):
    """Scale of the intensities that the networks see (`app.preprocessing.normalization`).

    Attributes:
        scheme: `volume`, `range` or `dataset`.
        percentile: of the non-zero voxels, where `volume` and `range` clip.
        intensities: constants of `dataset`, per sequence; those of the 2025 BraSyn entry if not given. The key `file`
            names a file of `fit-normalization` instead.
    """

    scheme: Scheme = "volume"
    percentile: float = 99.5
    intensities: dict[Modality, SequenceIntensity] = Field(default_factory=dict)

    @property
    def is_default(self) -> bool:
        """Whether it is that of every 3D network that makes images: z-scores of each volume."""
        return self == NormalizationRecipe()

    def build(self) -> Normalization:
        """Give the scheme that subjects are prepared by and models are run with."""
        if self.scheme != "dataset":
            return Normalization(self.scheme, background=BACKGROUND, percentile=self.percentile)
        own = {m: Intensity(i.mean, i.std, i.clip) for m, i in self.intensities.items()}
        return Normalization("dataset", background=BACKGROUND, intensities=own or BRASYN25_INTENSITIES)

    @model_validator(mode="after")
    def _check_normalization(self) -> Self:
        check_rules(
            {
                "normalization.intensities are for normalization.scheme = 'dataset'": self.scheme == "dataset"
                or not self.intensities,
                "normalization.intensities must name all four sequences": not self.intensities
                or set(self.intensities) == set(MODALITIES),
                "normalization.percentile must be above 0 and at most 100": 0 < self.percentile <= 100,
            }
        )
        return self


class AugmentationRecipe(Section):
    """Reach of the random variation; all zero leaves images alone.

    Geometry moves all sequences together, the rest varies each input by itself.

    Attributes:
        flip: probability of mirroring left and right (not in sagittal slices, which have no left).
        rotate, zoom: largest rotation in degrees and relative change of size.
        contrast, brightness: largest relative and absolute change of an input's normalized voxels.
        gamma: largest absolute log of the exponent on an input's voxels, mapped to [0, 1].
        bias: largest relative change by a smooth field.
        noise: largest deviation of Gaussian noise, in normalized units.
        thick: half of the inputs look as if acquired in slices of 1 to so many voxels; up to 1, none does.
    """

    flip: float = 0.5
    rotate: float = 0.0
    zoom: float = 0.0
    contrast: float = 0.1
    brightness: float = 0.1
    gamma: float = 0.0
    bias: float = 0.0
    noise: float = 0.0
    thick: float = 0.0

    @model_validator(mode="after")
    def _check_augmentation(self) -> Self:
        check_rules(
            {
                "no augmentation must be negative": all(value >= 0 for _, value in self),
                "augmentation.zoom and bias must be below 1": max(self.zoom, self.bias) < 1,
            }
        )
        return self


class SliceAugmentation(AugmentationRecipe):
    """Reach of the random variation of slices.

    Attributes:
        shift: largest translation in pixels, each way.
        stretch: largest log of the ratio by which one side of a slice grows against the other.
        bend: largest displacement in pixels, about, by a smooth field, each way: brains of other shapes.
    """

    shift: int = 6
    stretch: float = 0.0
    bend: float = 0.0


class RecolouringRecipe(Section):
    """Share of tumours that get another shade.

    Attributes:
        recolour_t1n, recolour_t2f: probability that the tumours of a T1n, of a T2-FLAIR, get any shade.
    """

    recolour_t1n: float = 0.0
    recolour_t2f: float = 0.0

    @model_validator(mode="after")
    def _check_recolouring(self) -> Self:
        shares = (self.recolour_t1n, self.recolour_t2f)
        check_rules({"augmentation.recolour_t1n and recolour_t2f are probabilities": all(0 <= s <= 1 for s in shares)})
        return self
