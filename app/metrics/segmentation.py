"""Overlap and surface distances of tumour regions, spacing-aware, through DeepMind's surface-distance.

Regions as BraTS defines them: enhancing tumour (ET), tumour core (TC: enhancing and necrotic), whole tumour (WT).
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.types import MaskArray

#: Labels of each region, as `tumour_labels` has them.
REGIONS: Final[dict[str, tuple[int, ...]]] = {"ET": (3,), "TC": (1, 3), "WT": (1, 2, 3)}
#: Distance that the challenge counts where one of two regions is empty: the diagonal of 240 x 240 x 155 mm.
EMPTY_DISTANCE_MM: Final = 374.0
#: Tolerances of the normalised surface Dice, in millimetres.
TOLERANCES_MM: Final = (0.5, 1.0)


def region_mask(labels: NDArray[Any], region: str) -> MaskArray:
    """True where a label map shows a region; labels as `tumour_labels` takes them."""
    return np.isin(tumour_labels(labels), REGIONS[region])


def tumour_labels(labels: NDArray[Any]) -> NDArray[np.uint8]:
    """BraTS labels of any year as those since 2023: 1 core without enhancement, 2 oedema, 3 enhancing tumour.

    Until 2022 the enhancing tumour is 4. In exams after an operation (2024) 4 is the resection cavity, which is no
    tumour: it becomes 0. Only a map with both 3 and 4 shows that it is one of these.

    Args:
        labels: 0 to 4, any shape and type.
    """
    rounded = np.rint(labels).astype(np.uint8)
    return np.where(rounded == 4, 0 if has_cavity(rounded) else 3, rounded).astype(np.uint8)


def has_cavity(labels: NDArray[Any]) -> bool:
    """Whether a label map has both 3 and 4, so that 4 is a resection cavity."""
    return bool((labels == 3).any() and (labels == 4).any())


def segmentation_scores(
    prediction: NDArray[Any], truth: NDArray[Any], spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> dict[str, float]:
    """Dice, 95 % Hausdorff distance (mm), normalised surface Dice at 0.5 and 1 mm, average symmetric distance (mm).

    Args:
        prediction, truth: label maps of one shape.
        spacing: voxel edge lengths in millimetres.

    Returns:
        Names such as `dice_ET`, `hd95_TC`, `nsd0.5_WT`, `nsd1_WT`, `assd_WT`. Both regions empty: 1, 0 mm, 1, 0 mm; one
        empty: 0, 374 mm, 0, 374 mm, as the challenge counts them.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"shapes differ: {prediction.shape}, {truth.shape}")
    scores: dict[str, float] = {}
    for region in REGIONS:
        for name, value in mask_scores(region_mask(prediction, region), region_mask(truth, region), spacing).items():
            scores[f"{name}_{region}"] = value
    return scores


def mask_scores(prediction: MaskArray, truth: MaskArray, spacing: tuple[float, float, float]) -> dict[str, float]:
    """The scores of `segmentation_scores` for one pair of masks, without the region's name."""
    if not prediction.any() or not truth.any():
        both = not prediction.any() and not truth.any()
        share, distance = (1.0, 0.0) if both else (0.0, EMPTY_DISTANCE_MM)
        return {"dice": share, "hd95": distance, **{f"nsd{t:g}": share for t in TOLERANCES_MM}, "assd": distance}
    import surface_distance

    surfaces = surface_distance.compute_surface_distances(truth, prediction, spacing_mm=spacing)
    to_prediction, to_truth = surface_distance.compute_average_surface_distance(surfaces)
    areas = [float(surfaces[f"surfel_areas_{side}"].sum()) for side in ("gt", "pred")]
    scores = {
        "dice": float(surface_distance.compute_dice_coefficient(truth, prediction)),
        "hd95": float(surface_distance.compute_robust_hausdorff(surfaces, 95)),
    }
    for tolerance in TOLERANCES_MM:
        scores[f"nsd{tolerance:g}"] = float(surface_distance.compute_surface_dice_at_tolerance(surfaces, tolerance))
    # Symmetric: each surface element counts by its area, whichever side it is on.
    scores["assd"] = float((to_prediction * areas[0] + to_truth * areas[1]) / math.fsum(areas))
    return scores
