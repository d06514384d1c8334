"""Sets of present sequences, each with a sequence to make."""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import combinations

from app.core.constants import MODALITIES, Modality


def subsets() -> Iterator[tuple[tuple[Modality, ...], Modality]]:
    """List every non-empty set of present sequences with every target outside it."""
    for target in MODALITIES:
        others = [m for m in MODALITIES if m != target]
        for count in (1, 2, 3):
            for inputs in combinations(others, count):
                yield inputs, target


def subset_key(inputs: Container[str], target: Modality) -> str:
    """Name a set of inputs and a target in tables of coefficients, as in `t1c+t2f+t2w>t1n`."""
    return "+".join(m for m in MODALITIES if m in inputs) + ">" + target
