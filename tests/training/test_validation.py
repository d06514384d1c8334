from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from app.core.errors import CaseError
from app.data.cases import Case
from app.data.discovery import scan
from app.data.segmentations import find_segmentations
from app.evaluation.scoring import VolumeScores
from app.inference.synthesizer import Synthesizer
from app.networks.unet import Segmenter2d
from app.training import validation
from app.training.data.sections import SliceData

DATA = SliceData(axial=(48, 48), sagittal=(48, 48), coronal=(48, 48), views=("axial",))


@pytest.fixture
def cases(training_data) -> list[Case]:
    return list(scan(training_data).cases[:1])


def test_means_leave_out_what_nobody_has():
    rows = [VolumeScores("a", "t1c", {"x": 1.0, "y": math.nan}), VolumeScores("b", "t1c", {"x": 3.0, "y": math.nan})]
    assert validation.means(rows) == {"x": 2.0}
    assert validation.means([]) == {}


class TestMissingSequences:
    @pytest.fixture
    def model(self, weights_dir):
        return Synthesizer("regression", weights=weights_dir, device="cpu").model

    def test_each_is_dropped_made_and_scored(self, model, cases, training_data):
        masks = find_segmentations(training_data, cases)
        rows = validation.score_missing_sequences(model, cases, masks, ("t1c", "t2w"))
        assert [(r.subject, r.modality) for r in rows] == [("s0", "t1c"), ("s0", "t2w")]
        assert all(0 < r.values["ssim_brain"] < 1 and np.isfinite(r.values["ssim_tumour"]) for r in rows)
        (alone,) = validation.score_missing_sequences(model, cases, {}, ("t1c",))
        assert alone.values["ssim_brain"] == rows[0].values["ssim_brain"]
        assert math.isnan(alone.values["ssim_tumour"])

    def test_what_cannot_be_made_is_left_out_by_name(self, model, cases, monkeypatch, caplog):
        def broken(inputs, target, *_):
            raise CaseError("no brain")

        monkeypatch.setattr(validation, "synthesize_case", broken)
        assert validation.score_missing_sequences(model, cases, {}, ("t1c",)) == []
        assert "s0 is not scored on t1c: no brain" in caplog.text


def test_a_segmenter_is_scored_where_there_is_a_truth(cases, training_data):
    torch.manual_seed(0)
    network, device = Segmenter2d((8, 8)), torch.device("cpu")
    masks = find_segmentations(training_data, cases)
    (row,) = validation.score_segmenter2d(network, cases, masks, DATA, device)
    assert row.subject == "s0"
    assert 0 <= row.values["dice_WT"] <= 1
    assert validation.score_segmenter2d(network, cases, {}, DATA, device) == []
