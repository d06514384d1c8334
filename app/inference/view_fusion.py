"""From slices of several views to one volume: the mean, the median, or the mean weighted by how sure each view is.

Three predictions of one voxel with expected absolute errors b (see `app.networks.confidence`) are joined with weights
1 / b ** 2: those of the least variance if the errors were independent. The views of one network are not: they see the
same inputs and err together. So the weights are used as a ranking that is known to be good, and the expected error of
what they give is not taken from independence (which would shrink it with every view), but as the root of the mean of
b ** 2 by the same weights: an upper bound, and close where the views expect errors of much the same size.

A mirrored copy of a view counts as half of that view. With these weights it does not matter whether a view is joined
with its mirrored copy first or all predictions at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from app.core.config import FusionName
from app.core.constants import View
from app.core.types import MaskArray, VolumeArray
from app.preprocessing.slices import Canvas, Window, place_window

#: Expected error where no window reaches: there the volume is background, and nothing was expected.
BEYOND = 1.0
#: No view is surer than this many scores: below it the weight of a view grows no more.
LEAST_ERROR = 1e-3


@dataclass(frozen=True)
class FusionOptions:
    """How what the network makes becomes one volume.

    Attributes:
        fusion: `mean`, `median` or `confidence`.
        flip: whether the mirrored exam is run as well.
        with_error: whether the expected error of the result is wanted.
    """

    fusion: FusionName = "mean"
    flip: bool = False
    with_error: bool = False

    @property
    def name(self) -> str:
        """For records and headers: `mean`, or `mean+flip` with the mirrored exam."""
        return self.fusion + ("+flip" if self.flip else "")

    @property
    def needs_error(self) -> bool:
        """Whether the network's head must run."""
        return self.with_error or self.fusion == "confidence"


@dataclass(frozen=True)
class FusedPrediction:
    """What came of all views.

    Attributes:
        scores: float32, axes (left, posterior, superior).
        error: expected absolute error in scores, same shape; None where it was not asked for.
    """

    scores: VolumeArray
    error: VolumeArray | None = None

    @classmethod
    def of(cls, scores: VolumeArray, squares: VolumeArray | None) -> FusedPrediction:
        """From what `ViewFusion.result` gave, in numpy arrays: the root is drawn here, since torch's rounds otherwise."""
        return cls(scores, None if squares is None else np.sqrt(squares))


@dataclass(frozen=True)
class TtaPass:
    """One exam as the network sees it: as it is, or mirrored left to right.

    Attributes:
        windows: one per view.
        mirrored: whether the volumes' first axis runs backwards.
    """

    windows: tuple[Window, ...]
    mirrored: bool = False


def tta_passes(foreground: MaskArray, views: Sequence[View], canvas: Canvas, flip: bool) -> list[TtaPass]:
    """What is to be run: every view once, and with `flip` also on the mirrored brain.

    A sagittal slice has no left: the mirrored brain has the very same ones, and its second run is left out.
    """
    found = [TtaPass(tuple(place_window(foreground, view, canvas) for view in views))]
    mirrored = [view for view in views if view != "sagittal"]
    if flip and mirrored:
        # Windows of its own, for a mirrored window may lie one voxel beside the window of the mirrored brain.
        found.append(TtaPass(tuple(place_window(foreground[::-1], view, canvas) for view in mirrored), mirrored=True))
    return found


def view_weights(planned: Sequence[TtaPass]) -> dict[View, float]:
    """Weight of each single prediction of a view: all views weigh the same, a mirrored one in two halves."""
    views = [w.view for p in planned for w in p.windows]
    return {view: 1 / (len(set(views)) * views.count(view)) for view in views}


class ViewFusion:
    """Joins whole volumes, one after the other, in float32; numpy arrays or torch tensors, with the same bits.

    Args:
        fusion: how.
        library: `numpy` or `torch`: whose volumes.
    """

    def __init__(self, fusion: FusionName, library: Any = np) -> None:
        self._fusion, self._library = fusion, library
        self._scores: Any = None
        # Of confidence: the weights' sum. Else: the mean of b ** 2.
        self._errors: Any = None
        self._total = 0.0
        self._views: dict[View, Any] = {}

    def add(self, view: View, scores: Any, error: Any, share: float) -> None:
        """Takes one prediction in.

        Args:
            scores: float32, axes (left, posterior, superior).
            error: expected absolute error, same shape; needed by `confidence`, else None where it is not wanted.
            share: of this prediction; all of a view's add up to that view's.
        """
        # As float32 whatever the library, so that both give the same bits.
        part = float(np.float32(share))
        self._total += part
        if self._fusion == "confidence":
            self._weigh(scores, error, part)
            return
        if self._fusion == "median":
            before = self._views.get(view)
            self._views[view] = scores if before is None else 0.5 * (before + scores)
        else:
            self._scores = self._library.zeros_like(scores) if self._scores is None else self._scores
            self._scores += part * scores
        if error is not None:
            self._errors = self._library.zeros_like(error) if self._errors is None else self._errors
            self._errors += part * (error * error)

    def _weigh(self, scores: Any, error: Any, part: float) -> None:
        weight = part * (1.0 / (error * error + LEAST_ERROR**2))
        if self._scores is None:
            self._scores, self._errors = scores + 0.0, weight
            return
        self._errors += weight
        # A running mean: where all agree it stays what it is, to the last bit.
        self._scores += (weight / self._errors) * (scores - self._scores)

    def result(self) -> tuple[Any, Any]:
        """Scores, and the square of the expected error (None where none was given)."""
        scores = self._middle() if self._fusion == "median" else self._scores
        if self._errors is not None and self._fusion == "confidence":
            return scores, self._total * (1.0 / self._errors)
        return scores, self._errors

    def _middle(self) -> Any:
        """The median of one to three views, each the mean of its prediction and its mirrored one."""
        views = list(self._views.values())
        if len(views) == 1:
            return views[0]
        low, high = self._library.minimum(*views[:2]), self._library.maximum(*views[:2])
        if len(views) == 2:
            return 0.5 * (low + high)
        return self._library.maximum(low, self._library.minimum(high, views[2]))
