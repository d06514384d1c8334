"""A trial on the exam itself: each present sequence is made from the others, and compared with the real one.

How well a sequence that is there can be made of the rest tells something of how well the missing one can
(docs/RESULTS.md, "Expected quality").
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from app.core.constants import MODALITIES
from app.core.types import VolumeArray
from app.inference.slicewise.view_fusion import FusionOptions, TtaPass
from app.preprocessing.foreground import bounding_box
from app.preprocessing.normalization import denormalize, rescale_as_scored
from app.preprocessing.similarity import ssim_map
from app.preprocessing.slices import plan_window

if TYPE_CHECKING:
    from app.core.constants import Modality
    from app.inference.models import NetworkModel
    from app.inference.prepared import Prepared

#: Of so many axial slices one is made: more change the trial far less than the forecast is off (docs/RESULTS.md).
STEP: Final = 16


def trial_ssim(prepared: Prepared, model: NetworkModel, step: int = STEP) -> float | None:
    """Make each present sequence from the others, on some axial slices, and score it.

    Args:
        prepared: two sequences or more.
        model: its own network is tried, not its specialists'.
        step: of so many axial slices one is made.

    Returns:
        SSIM in the brain, slice by slice, of sequences scaled as the challenge scales volumes; the mean over those that
        the network makes. None where it makes none.

    Raises:
        CaseError: the network does not fit into memory.
    """
    if len(prepared.arrays) < 2 or model.spec.needed or "axial" not in model.spec.views:
        return None
    tried = [m for m in MODALITIES if m in prepared.arrays and m in model.spec.targets]
    return float(np.mean([_score(prepared, m, model, step) for m in tried])) if tried else None


def _score(prepared: Prepared, target: Modality, model: NetworkModel, step: int) -> float:
    # Of step 1 for the predictor: nobody looks at the slices between, so none is interpolated.
    window = replace(plan_window(prepared.foreground, "axial", model.spec.canvas, step), step=1)
    rest = prepared.without(target)
    median = model.median_of(target, rest)
    made = model.predictor.predict(rest, target, [TtaPass((window,))], FusionOptions(), median).volume
    rows, columns, _ = bounding_box(prepared.foreground)
    place = (rows, columns, list(window.slices))
    brain = prepared.foreground[place]
    # As in a result, single voxels that are no numbers decide nothing.
    scores = np.nan_to_num(made[place], nan=0.0, posinf=0.0, neginf=0.0)
    values = denormalize(scores, model.intensity_of(target, rest.measured), brain)
    pair: list[VolumeArray] = [values, np.where(brain, prepared.arrays[target][place], np.float32(0))]
    synthesis, truth = (rescale_as_scored(volume) for volume in pair)
    slices = range(brain.shape[2])
    found = [ssim_map(synthesis[..., i], truth[..., i], 1.0)[brain[..., i]] for i in slices]
    return float(np.concatenate(found).mean())
