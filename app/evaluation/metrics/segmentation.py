"""Score tumour regions by overlap and by surface distances in millimetres.

Distances come from DeepMind's surface-distance. Regions are those of BraTS: enhancing tumour (ET), tumour core (TC:
enhancing and necrotic), whole tumour (WT).
"""

from __future__ import annotations

import math
from typing import Any, Final

from numpy.typing import NDArray

from app.core.types import MaskArray
from app.data.labels import REGIONS, region_mask

#: Distance that the challenge counts where one of two regions is empty: the diagonal of 240 x 240 x 155 mm.
EMPTY_DISTANCE_MM: Final = 374.0
#: Tolerances of the normalised surface Dice, in millimetres.
TOLERANCES_MM: Final = (0.5, 1.0)


def segmentation_scores(
    prediction: NDArray[Any], truth: NDArray[Any], spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> dict[str, float]:
    """Compute Dice, Hausdorff distance, surface Dice and average distance of every region.

    Args:
        prediction, truth: label maps of one shape.
        spacing: voxel edge lengths in millimetres.

    Returns:
        `dice_ET`; `hd95_TC`: 95 % Hausdorff distance in mm; `nsd0.5_WT`, `nsd1_WT`: normalised surface Dice at 0.5 and
        1 mm; `assd_WT`: average symmetric surface distance in mm. All for each region. Two empty regions
        give 1, 0 mm, 1 and 0 mm; one empty region gives 0, 374 mm, 0 and 374 mm, as in the challenge.

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
    """Compute the scores of `segmentation_scores` for one pair of masks, without the region's name."""
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
