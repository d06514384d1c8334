"""Compute the BraSyn image score: structural similarity of healthy and of tumour tissue.

Source: the challenge's public evaluation script. Each volume is clipped to its own 0.5 and 99.5 percentiles
(the lower at least 0) and scaled to [0, 1]. Then torchmetrics' 3D SSIM is taken on volume * mask and on
volume * (1 - mask). It is averaged over the whole cuboid, background included. That SSIM is eq. 13 of Wang et
al., IEEE TIP 2004: Gaussian window of deviation 1.5 in 11 taps, k1 0.01, k2 0.03, reflected border.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.core.types import MaskArray, VolumeArray
from app.preprocessing.normalization import rescale_as_scored
from app.preprocessing.similarity import TAPS, dynamic_range, ssim_map

Border = Literal["keep", "drop"]


class OfficialScore(NamedTuple):
    """Hold two SSIMs in [-1, 1]; `tumour` is 1 where the mask is empty."""

    healthy: float
    tumour: float


def official_score(
    prediction: VolumeArray, truth: VolumeArray, tumour: MaskArray, border: Border = "keep"
) -> OfficialScore:
    """Compute the challenge's two numbers for one synthesised volume.

    Args:
        prediction: float32, three axes, intensities in any unit.
        truth: the real sequence, same shape.
        tumour: True in any tumour label, same shape.
        border: `keep` averages every voxel (torchmetrics >= 1.4.2); `drop` leaves out five voxels at each face
            (older versions).

    Raises:
        ValueError: shapes differ, or a value is not finite.
    """
    if not prediction.shape == truth.shape == tumour.shape:
        raise ValueError(f"shapes differ: {prediction.shape}, {truth.shape}, {tumour.shape}")
    if not (np.isfinite(prediction).all() and np.isfinite(truth).all()):
        raise ValueError("a volume holds values that are not finite")
    p, t = rescale_as_scored(prediction), rescale_as_scored(truth)
    return OfficialScore(mean_ssim(p * ~tumour, t * ~tumour, border), mean_ssim(p * tumour, t * tumour, border))


def mean_ssim(prediction: NDArray[np.float64], truth: NDArray[np.float64], border: Border = "keep") -> float:
    """Average `ssim_map` over the cuboid, computed only where there is content."""
    box = content_box(prediction, truth)
    similarity = ssim_map(prediction[box], truth[box], dynamic_range(prediction, truth))
    margin = 0 if border == "keep" else TAPS // 2
    total = math.prod(n - 2 * margin for n in truth.shape)
    inner = tuple(
        slice(max(margin - b.start, 0), min(b.stop, n - margin) - b.start)
        for b, n in zip(box, truth.shape, strict=True)
    )
    counted = similarity[inner]
    return float((counted.sum() + total - counted.size) / total)


def content_box(*volumes: NDArray[Any]) -> tuple[slice, ...]:
    """Find the box outside of which all volumes are 0, widened by the window's reach.

    Beyond it both windows hold nothing but zeros, so SSIM is exactly 1 there and need not be computed.
    """
    filled = np.logical_or.reduce([v != 0 for v in volumes])
    box = []
    for axis in range(filled.ndim):
        indices = np.flatnonzero(filled.any(axis=tuple(a for a in range(filled.ndim) if a != axis)))
        low, high = (int(indices[0]), int(indices[-1]) + 1) if indices.size else (0, 1)
        # Mirroring at a cut needs as many voxels as the window reaches, all of them true neighbours.
        box.append(slice(max(0, low - 2 * (TAPS // 2)), min(filled.shape[axis], high + 2 * (TAPS // 2))))
    return tuple(box)
