"""From slices of several views to one volume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from app.constants import View
from app.types import SliceStack, VolumeArray
from app.views import Window, paste


def fuse_views(
    predictions: Mapping[View, SliceStack],
    windows: Sequence[Window],
    shape: tuple[int, ...],
    background: float,
    weights: Mapping[View, float] | None = None,
) -> VolumeArray:
    """Stacks each view's slices, crops the windows' overhang, and takes the weighted mean over views.

    Args:
        predictions: per view, float32 (len(window.slices), rows, columns).
        windows: one per view.
        shape: of the volume, axes (left, posterior, superior).
        background: score where no window reaches.
        weights: per view, positive; equal where not given.

    Returns:
        float32 scores, axes (left, posterior, superior).
    """
    total = np.zeros(shape, dtype=np.float32)
    share = {w.view: 1.0 if weights is None else weights[w.view] for w in windows}
    for window in windows:
        stacked = paste(predictions[window.view], window, shape, background)
        total += np.float32(share[window.view] / sum(share.values())) * stacked
    return total
