"""Predictions of several views fused: their mean, their median, or a mean weighted by confidence.

Three predictions of one voxel with expected absolute errors b (see `app.networks.confidence`) are fused with weights
1 / b ** 2. Those give the least variance if the errors are independent. The views of one network see the same inputs
and err together. So the weights only rank the views; the expected error is not taken from independence, which would
shrink it with every view. It is the root of the weighted mean of b ** 2: an upper bound, and close where the views
expect errors of much the same size.

A mirrored copy of a view counts as half of that view. With these weights it does not matter whether a view is fused
with its mirrored copy first, or all predictions at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

from app.core.config import FusionName
from app.core.constants import View
from app.core.types import MaskArray, VolumeArray
from app.preprocessing.slices import Canvas, Window, plan_window

#: Of how many slices of a view one is made where the mirrored exam's lie between, or as few as possible are.
THINNED_STEP: Final = 2
#: Expected error where no window reaches: there the volume is background, and nothing was expected.
ERROR_OUTSIDE = 1.0
#: Below this expected error, in z-scores, the weight of a view grows no more.
LEAST_ERROR = 1e-3


@dataclass(frozen=True)
class FusionOptions:
    """How the predictions of a network become one volume.

    Attributes:
        method: `mean`, `median` or `confidence`.
        flip: whether the mirrored exam is run as well.
        with_error: whether the expected error of the result is wanted.
        step: of so many slices of each view one is made; those between are interpolated. The mirrored exam's slices
            then lie between the others.
    """

    method: FusionName = "mean"
    flip: bool = False
    with_error: bool = False
    step: int = 1

    @property
    def name(self) -> str:
        """Name for records and headers: `mean`, `+flip` with the mirrored exam, `+step2` of every second slice."""
        return self.method + ("+flip" if self.flip else "") + (f"+step{self.step}" if self.step > 1 else "")

    @property
    def needs_error(self) -> bool:
        """Whether the network's confidence head must run."""
        return self.with_error or self.method == "confidence"


@dataclass(frozen=True)
class FusedPrediction:
    """All views of a prediction in one volume.

    Attributes:
        volume: normalized, float32, axes (left, posterior, superior).
        error: expected absolute error of `volume`, same shape; None where it was not wanted.
        disagreement: of the views of the exam as it is, the mirrored ones left out: root of their variance's mean over
            the brain, in deviations of the sequence. None where there is one view alone.
    """

    volume: VolumeArray
    error: VolumeArray | None = None
    disagreement: float | None = None


@dataclass(frozen=True)
class TtaPass:
    """One run over the exam, as it is or mirrored left to right.

    Attributes:
        windows: one per view, in the indices of the exam as it is.
        mirrored: whether the network sees the rows of each slice backwards. A sagittal slice cannot be mirrored.
    """

    windows: tuple[Window, ...]
    mirrored: bool = False


def tta_passes(
    foreground: MaskArray, views: Sequence[View], canvas: Canvas, flip: bool, step: int = 1
) -> list[TtaPass]:
    """Plan the runs: every view once, and with `flip` also on the mirrored brain.

    A sagittal slice has no left: the mirrored brain has the very same ones, and its second run is left out.

    Args:
        step: of so many slices of each view one is made, and the first and the last; those of the mirrored brain lie
            between the others.
    """
    passes = [TtaPass(tuple(plan_window(foreground, view, canvas, step) for view in views))]
    mirrored = [view for view in views if view != "sagittal"]
    if flip and mirrored:
        between = step // 2
        # Windows of their own: a mirrored window may lie one voxel beside the window of the mirrored brain.
        windows = (plan_window(foreground[::-1], view, canvas, step, between) for view in mirrored)
        passes.append(TtaPass(tuple(_mirror(w, len(foreground)) for w in windows), mirrored=True))
    return passes


def _mirror(window: Window, extent: int) -> Window:
    """Mirror an axial or coronal window in the middle of an axis of `extent` voxels."""
    start = (extent - window.start[0] - window.size[0], window.start[1])
    return replace(window, start=start, parts=tuple(_mirror(part, extent) for part in window.parts))


def view_weights(passes: Sequence[TtaPass]) -> dict[View, float]:
    """Weigh the predictions of each view: all views weigh the same, a mirrored one in two halves."""
    views = [w.view for p in passes for w in p.windows]
    return {view: 1 / (len(set(views)) * views.count(view)) for view in views}


class ViewFusion:
    """Fuse whole volumes, one after the other, in float32.

    Args:
        method: `mean`, `median` or `confidence`.
    """

    def __init__(self, method: FusionName) -> None:
        self._method = method
        self._volume: Tensor | None = None
        # With `confidence` the sum of the weights, else the mean of b ** 2.
        self._errors: Tensor | None = None
        self._total = 0.0
        self._views: dict[View, Tensor] = {}
        # Of the views of the exam as it is.
        self._count = 0
        self._mean: Tensor | None = None
        self._deviations: Tensor | None = None

    def add(self, view: View, volume: Tensor, error: Tensor | None, weight: float, is_mirrored: bool = False) -> None:
        """Take one prediction in.

        Args:
            volume: normalized, float32, axes (left, posterior, superior); kept, and not changed.
            error: expected absolute error, same shape; `confidence` needs it, else None where it is not wanted.
            weight: of this prediction; those of all predictions add up to 1.
            is_mirrored: whether it comes of the mirrored exam.
        """
        if not is_mirrored:
            self._compare(volume)
        # Rounded to float32, so that every device gives the same bits.
        part = float(np.float32(weight))
        self._total += part
        if self._method == "confidence":
            assert error is not None
            self._weigh(volume, error, part)
            return
        if self._method == "median":
            before = self._views.get(view)
            self._views[view] = volume if before is None else 0.5 * (before + volume)
        else:
            self._volume = torch.zeros_like(volume) if self._volume is None else self._volume
            self._volume += part * volume
        if error is not None:
            self._errors = torch.zeros_like(error) if self._errors is None else self._errors
            self._errors += part * (error * error)

    def _compare(self, volume: Tensor) -> None:
        """Take a view into the mean of the views and the sum of their squared deviations (Welford 1962)."""
        self._count += 1
        if self._mean is None or self._deviations is None:
            self._mean, self._deviations = volume + 0.0, torch.zeros_like(volume)
            return
        step = volume - self._mean
        self._mean += step / self._count
        self._deviations += step * (volume - self._mean)

    def _weigh(self, volume: Tensor, error: Tensor, part: float) -> None:
        weight = part * (1.0 / (error * error + LEAST_ERROR**2))
        if self._volume is None or self._errors is None:
            self._volume, self._errors = volume + 0.0, weight
            return
        self._errors += weight
        # A running mean: where all agree it stays what it is, to the last bit.
        self._volume += (weight / self._errors) * (volume - self._volume)

    def result(self, brain: MaskArray | None = None) -> FusedPrediction:
        """Return the fused volume, with its expected error where errors were given.

        Args:
            brain: where views are compared; everywhere if not given.
        """
        volume = self._median() if self._method == "median" else self._volume
        assert volume is not None
        squares = self._errors
        if squares is not None and self._method == "confidence":
            squares = self._total * (1.0 / squares)
        # The root by numpy: torch rounds it otherwise.
        error = None if squares is None else np.sqrt(squares.cpu().numpy())
        return FusedPrediction(volume.cpu().numpy(), error, self._disagreement(brain))

    def _disagreement(self, brain: MaskArray | None) -> float | None:
        if self._deviations is None or self._count < 2:
            return None
        squares = self._deviations
        inside = squares if brain is None else squares[torch.from_numpy(brain).to(squares.device)]
        # Some voxels that are no numbers are mended later; they must not decide here.
        return float((inside[torch.isfinite(inside)].double().mean() / self._count).sqrt())

    def _median(self) -> Tensor:
        """Take the median of one to three views, each the mean of its predictions."""
        views = list(self._views.values())
        if len(views) == 1:
            return views[0]
        low, high = torch.minimum(*views[:2]), torch.maximum(*views[:2])
        if len(views) == 2:
            return 0.5 * (low + high)
        return torch.maximum(low, torch.minimum(high, views[2]))
