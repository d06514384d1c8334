"""Score images inside the brain, and as the challenge does over the whole cuboid.

The challenge clips each volume to its own percentiles and scales it to [0, 1]. All scores are computed on such pairs,
so that the scanner's arbitrary unit plays no part.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from app.core.types import MaskArray, VolumeArray
from app.evaluation.metrics.ssim import Border, content_box, mean_ssim
from app.preprocessing.normalization import rescale_as_scored
from app.preprocessing.similarity import dynamic_range, ssim_map

#: How far the surroundings of a tumour reach, in millimetres.
SHELL_MM = 10.0
#: Difference that counts as right in `pixel_accuracy`, as a share of the normalised range.
TOLERANCE = 0.05


def image_scores(
    prediction: VolumeArray,
    truth: VolumeArray,
    tumour: MaskArray | None,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    border: Border = "keep",
) -> dict[str, float]:
    """Compute every image score of one synthesised volume.

    Args:
        prediction, truth: float32, axes (left, posterior, superior), background 0, finite.
        tumour: True in any tumour label; None where there is no segmentation.
        spacing: voxel edge lengths in millimetres.
        border: see `app.evaluation.metrics.ssim.official_score`.

    Returns:
        By name:
        `official_healthy`, `official_tumour`: without a segmentation the first is over the whole volume and the second
        NaN; with an empty one the second is 1.
        `ssim_brain`, `ssim_tumour`, `ssim_shell`: the SSIM map of the unmasked pair, averaged over those voxels; NaN
        where there are none.
        `psnr_brain`: in dB, infinite for identical volumes. `mae_brain`, `nmse_brain`.
        `accuracy_brain`, `accuracy_tumour`: see `pixel_accuracy`.
        `stripe_left`, `stripe_posterior`, `stripe_superior`: see `stripe_score`.

    Raises:
        ValueError: shapes differ, or a value is not finite.
    """
    if prediction.shape != truth.shape or (tumour is not None and tumour.shape != truth.shape):
        raise ValueError(f"shapes differ: {prediction.shape}, {truth.shape}, {getattr(tumour, 'shape', None)}")
    if not (np.isfinite(prediction).all() and np.isfinite(truth).all()):
        raise ValueError("a volume holds values that are not finite")
    p, t = rescale_as_scored(prediction), rescale_as_scored(truth)
    brain = truth > 0
    ill = np.zeros_like(brain) if tumour is None else tumour
    scores = {
        "official_healthy": mean_ssim(p * ~ill, t * ~ill, border),
        "official_tumour": math.nan if tumour is None else mean_ssim(p * ill, t * ill, border),
    }
    extent = dynamic_range(p, t)
    box = content_box(p, t, brain)
    p, t, brain, ill = p[box], t[box], brain[box], ill[box]
    similarity = ssim_map(p, t, extent)
    shell = tumour_shell(ill, spacing) & brain
    scores |= {
        "ssim_brain": _mean(similarity, brain),
        "ssim_tumour": _mean(similarity, ill),
        "ssim_shell": _mean(similarity, shell),
        "psnr_brain": psnr(p, t, brain),
        "mae_brain": _mean(np.abs(p - t), brain),
        "nmse_brain": nmse(p, t, brain),
        "accuracy_brain": pixel_accuracy(p, t, brain),
        "accuracy_tumour": pixel_accuracy(p, t, ill),
    }
    for axis, name in enumerate(("left", "posterior", "superior")):
        scores[f"stripe_{name}"] = stripe_score(p, t, brain, axis)
    return scores


def tumour_shell(tumour: MaskArray, spacing: tuple[float, float, float], reach: float = SHELL_MM) -> MaskArray:
    """Mark voxels at most `reach` millimetres outside the tumour; none for an empty tumour."""
    if not tumour.any():
        return np.zeros_like(tumour)
    distance = distance_transform_edt(~tumour, sampling=spacing)
    return np.asarray((distance > 0) & (distance <= reach))


def psnr(prediction: NDArray[np.float64], truth: NDArray[np.float64], where: MaskArray) -> float:
    """Compute the peak signal-to-noise ratio in dB over `where`, with peak 1.

    It is infinite for identical values and NaN for an empty mask.
    """
    error = _mean((prediction - truth) ** 2, where)
    return math.inf if error == 0 else -10 * math.log10(error)


def nmse(prediction: NDArray[np.float64], truth: NDArray[np.float64], where: MaskArray) -> float:
    """Divide summed squared error by summed squared truth; NaN for no voxel or no truth."""
    energy = float((truth[where] ** 2).sum())
    return float(((prediction[where] - truth[where]) ** 2).sum()) / energy if energy else math.nan


def pixel_accuracy(
    prediction: NDArray[np.float64], truth: NDArray[np.float64], where: MaskArray, tolerance: float = TOLERANCE
) -> float:
    """Return the share of voxels within `tolerance` of the truth; NaN for an empty mask.

    Source: the measure of CG-SAMR (Guo et al., IEEE TMI 2021).
    """
    return _mean((np.abs(prediction - truth) <= tolerance).astype(np.float64), where)


def stripe_score(prediction: NDArray[np.float64], truth: NDArray[np.float64], brain: MaskArray, axis: int) -> float:
    """Divide the mean absolute step between neighbouring slices by the truth's.

    1 is ideal; above 1 the slices flicker, as 2D synthesis does along its slice axis; below 1 they are blurred. NaN
    where the truth has no step.
    """
    front = tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))
    back = tuple(slice(1, None) if a == axis else slice(None) for a in range(3))
    pairs = brain[front] & brain[back]
    steps = [float(np.abs(v[back] - v[front])[pairs].sum()) for v in (prediction, truth)]
    return steps[0] / steps[1] if steps[1] > 0 else math.nan


def _mean(values: NDArray[np.float64], where: MaskArray) -> float:
    return float(values[where].mean()) if where.any() else math.nan
