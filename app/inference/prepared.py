"""A case in model space: what every kind of model predicts from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from app.core.constants import Modality
from app.core.types import MaskArray, VolumeArray
from app.data.nifti_reader import Grid
from app.preprocessing.exam_statistics import exam_statistics
from app.preprocessing.normalization import Intensity, normalize


@dataclass(frozen=True)
class Prepared:
    """The inputs of one case, with all that brings them into model space.

    Attributes:
        arrays: the present sequences in the file's units, float32, axes (left, posterior, superior).
        foreground: where the brain is, same shape.
        measured: mean, deviation and clip of each sequence.
        grids: where each input's voxels lie.
        background: normalized value of background voxels; None where the scheme names none.
    """

    arrays: dict[Modality, VolumeArray]
    foreground: MaskArray
    measured: dict[Modality, Intensity]
    grids: dict[Modality, Grid]
    background: float | None

    @property
    def padding(self) -> float:
        """Normalized value of missing sequences and beyond a volume's edge: `background`, or 0."""
        return 0.0 if self.background is None else self.background

    def without(self, modality: Modality) -> Prepared:
        """Leave one sequence out; the brain stays as all of them show it."""
        rest = replace(
            self,
            arrays={m: v for m, v in self.arrays.items() if m != modality},
            measured={m: v for m, v in self.measured.items() if m != modality},
            grids={m: v for m, v in self.grids.items() if m != modality},
        )
        if "normalized" in self.__dict__:
            rest.__dict__["normalized"] = {m: self.normalized[m] for m in rest.arrays}
        return rest

    @cached_property
    def statistics(self) -> dict[str, float]:
        """What tells how like other exams it is (`app.preprocessing.exam_statistics`)."""
        spacing = next(iter(self.grids.values())).lps_spacing
        return exam_statistics(self.arrays, self.foreground, spacing)

    @cached_property
    def normalized(self) -> dict[Modality, VolumeArray]:
        """Z-scores of each present sequence, float32; not computed where a GPU does it."""
        return {m: normalize(a, self.measured[m], self.background) for m, a in self.arrays.items()}
