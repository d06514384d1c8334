"""Predict each voxel by a cubic polynomial of the same voxel in the present sequences.

It needs no accelerator and cannot invent structure. So it is the baseline of any network, and the fallback for subjects
that a network cannot be run on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.core.constants import MODALITIES, Modality
from app.core.sequence_subsets import subset_key
from app.core.types import MaskArray, VolumeArray

#: Highest total degree of a monomial.
DEGREE = 3


def exponents(variables: int, degree: int = DEGREE) -> list[tuple[int, ...]]:
    """List monomials of up to `degree`, each as the indices of its factors, constant first."""
    return [term for d in range(degree + 1) for term in combinations_with_replacement(range(variables), d)]


def monomials(normalized: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute monomials, (terms, voxels) of (variables, voxels), in the order of `exponents`."""
    terms = exponents(len(normalized))
    out = np.empty((len(terms), normalized.shape[1]), dtype=np.float32)
    out[0] = 1
    row: dict[tuple[int, ...], int] = {(): 0}
    for index, term in enumerate(terms[1:], start=1):
        # A term is a shorter term, already there, times one more variable.
        np.multiply(out[row[term[:-1]]], normalized[term[-1]], out=out[index])
        row[term] = index
    return out


@dataclass(frozen=True)
class VoxelwiseRegression:
    """Hold coefficients for every subset of present sequences and every target.

    Attributes:
        coefficients: per `subset_key`, one number per monomial of `exponents`, inputs in challenge order.
        input_range: lowest and highest normalized input used in fitting; inputs are held inside (a cubic runs away).
        contrast: a regression is flatter than a scan. Its values over the brain are centred and divided by their
            deviation to this power: 0 leaves them flat, 1 gives them a scan's deviation of 1.
    """

    coefficients: Mapping[str, tuple[float, ...]]
    input_range: tuple[float, float]
    contrast: float

    def predict(
        self, normalized: Mapping[Modality, VolumeArray], target: Modality, foreground: MaskArray
    ) -> VolumeArray:
        """Predict the normalized target: float32, the inputs' shape, 0 outside `foreground`.

        Args:
            normalized: one to three sequences of one shape, without the target.
        """
        present = [m for m in MODALITIES if m in normalized]
        weights = np.asarray(self.coefficients[subset_key(present, target)], dtype=np.float32)
        inputs = np.stack([normalized[m][foreground] for m in present])
        np.clip(inputs, *self.input_range, out=inputs)
        predicted = np.zeros(foreground.shape, dtype=np.float32)
        values = weights @ monomials(inputs)
        deviation = float(values.std()) if values.size else 0.0
        if deviation > 0:
            values = (values - values.mean()) / deviation**self.contrast
        predicted[foreground] = values
        return predicted

    @classmethod
    def from_json(cls, form: Mapping[str, Any]) -> VoxelwiseRegression:
        """Read the file that training writes."""
        low, high = form["input_range"]
        coefficients = {k: tuple(v) for k, v in form["coefficients"].items()}
        return cls(coefficients, (float(low), float(high)), float(form["contrast"]))
