"""Tissue probabilities of one subject's own brain, as it would be without its lesion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.core.constants import MODALITIES, Modality
from app.core.types import MaskArray, VolumeArray
from app.inference.simulation.build import RANGE
from app.inference.simulation.tissue import tissue_probabilities
from app.preprocessing.foreground import bounding_box
from app.preprocessing.normalization import BACKGROUND, measure, normalize

#: The sequences by which tissues are told apart.
_TOLD_BY: Final = [MODALITIES.index("t1n"), MODALITIES.index("t2w")]
_LEVELS: Final = 255
#: Share of white matter in the brain above which it was not told from grey matter: three exams of 32 training subjects,
#: of thick slices, had 0.69 to 0.81, the others 0.30 to 0.48.
_MOST_WHITE: Final = 0.6


def own_tissue(
    images: NDArray[np.floating[Any]], brain: MaskArray, labels: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    """Fit three tissues to a subject's healthy brain, and put the other side's where its lesion lies.

    Nobody knows what was there before the lesion. The mirrored place of the box is the best guess at hand.

    Args:
        images: sequences x L x P x S on the box of the brain, in [-1, 1].
        brain, labels: L x P x S; a label above 0 is lesion.

    Returns:
        White matter, grey matter and fluid from 0 to 255, 3 x L x P x S. All three are 0 outside the brain, where the
        other side does not tell either, and everywhere in an exam too blurred to tell white from grey matter.
    """
    ill = np.zeros(brain.shape, dtype=bool) if labels is None else np.asarray(labels) > 0
    healthy = np.asarray(brain) & ~ill
    if not healthy.any():
        return np.zeros((3, *brain.shape), dtype=np.uint8)
    both = np.stack([np.asarray(images[number], dtype=np.float32) for number in _TOLD_BY])
    probabilities = tissue_probabilities(both, healthy)
    if probabilities[0, healthy].mean() > _MOST_WHITE:
        return np.zeros((3, *brain.shape), dtype=np.uint8)
    tissue = np.rint(probabilities * _LEVELS).astype(np.uint8)
    tissue[:, ill] = tissue[:, ::-1][:, ill]
    return tissue


def tissue_of_exam(
    volumes: Mapping[Modality, VolumeArray], brain: MaskArray, labels: NDArray[np.uint8] | None
) -> NDArray[np.uint8]:
    """Find the tissue of a complete exam, as `own_tissue`.

    Args:
        volumes, brain, labels: L x P x S, as scanned.
    """
    box = bounding_box(brain)
    images = np.stack([normalize(volumes[m][box], measure(volumes[m], m, RANGE), BACKGROUND) for m in MODALITIES])
    return own_tissue(images, brain[box], None if labels is None else labels[box])
