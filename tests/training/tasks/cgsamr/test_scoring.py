from __future__ import annotations

import numpy as np
import pytest

from app.data.discovery import scan
from app.data.loading import load_complete
from app.data.segmentations import find_segmentations
from app.inference.simulation.build import RANGE
from app.inference.simulation.simulator import SimulatedVolumes
from app.preprocessing.normalization import measure, normalize
from app.training.tasks.cgsamr.scoring import score_simulator
from tests.inference.simulation.helpers import small_simulator


class _Oracle:
    """Make the real exam, wrong by so much in the core."""

    def __init__(self, volumes, error):
        self._volumes, self._error = volumes, error

    sees_own_tissue = False

    def run(self, brain, labels, tissue):
        images = np.stack(
            [normalize(v.data, measure(v.data, m, RANGE), -1.0) for m, v in sorted(self._volumes.items())]
        )
        images[:, labels == 1] -= self._error * np.sign(images[:, labels == 1])
        return SimulatedVolumes(images, None, ())


@pytest.mark.parametrize("error,right", [(0.1, 1.0), (0.2, 0.0)])
def test_pixels_within_16_of_255_are_right(training_data, error, right):
    cases = scan(training_data).cases[:1]
    volumes = next(iter(load_complete(cases)))[1]
    rows = score_simulator(_Oracle(volumes, error), cases, find_segmentations(training_data, cases))
    assert [r.modality for r in rows] == ["t1c", "t1n", "t2f", "t2w"]
    for row in rows:
        assert row.values["accuracy_oedema"] == row.values["accuracy_enhancing"] == 1
        assert row.values["accuracy_core"] == pytest.approx(right, abs=0.05)
        assert row.values["ssim_brain"] > 0.8


def test_who_has_no_segmentation_is_left_out(training_data):
    assert score_simulator(small_simulator(), scan(training_data).cases, {}) == []
