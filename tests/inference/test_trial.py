from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from app import Synthesizer
from app.data.nifti_reader import load_volume
from app.inference.pipeline import prepare
from app.inference.slicewise.view_fusion import FusedPrediction
from app.inference.trial import STEP, trial_ssim
from app.preprocessing.normalization import Intensity


@pytest.fixture
def model(weights_dir):
    return Synthesizer("tiny", weights=weights_dir, device="cpu", precision="fp32").model


@pytest.fixture
def prepared(subject, model):
    return prepare({m: load_volume(subject[m]) for m in ("t1c", "t1n", "t2w")}, model)


class Answering:
    """Stands in for the network: gives the real sequence, or something worse."""

    def __init__(self, prepared, noise):
        self.prepared, self.noise, self.calls = prepared, noise, []

    def predict(self, rest, target, passes, options, intensity):
        self.calls.append((target, tuple(rest.arrays), passes[0].windows[0]))
        random = np.random.default_rng(0).standard_normal(rest.foreground.shape).astype(np.float32)
        return FusedPrediction(self.prepared.normalized[target] + self.noise * random)


def _tried(model, prepared, noise):
    answering = Answering(prepared, noise)
    exact = replace(model, predictor=answering, intensity=_Known(prepared.measured))
    return trial_ssim(prepared, exact), answering.calls


class _Known:
    def __init__(self, measured):
        self.measured = measured

    def predict(self, inputs, target) -> Intensity:
        return self.measured[target]


def test_each_input_is_made_of_the_others(model, prepared):
    _, calls = _tried(model, prepared, 0.0)
    assert [(target, inputs) for target, inputs, _ in calls] == [
        ("t1c", ("t1n", "t2w")),
        ("t1n", ("t1c", "t2w")),
        ("t2w", ("t1c", "t1n")),
    ]
    window = calls[0][2]
    assert window.view == "axial"
    assert max(np.diff(window.slices)) == STEP


def test_what_is_made_well_scores_well(model, prepared):
    perfect, some, much = (_tried(model, prepared, noise)[0] for noise in (0.0, 0.3, 1.0))
    assert perfect == pytest.approx(1.0, abs=0.02)
    assert much < some < perfect - 0.05


def test_a_real_network_is_tried(model, prepared):
    assert -1 < trial_ssim(prepared, model) < 1


def test_what_cannot_be_tried(model, prepared):
    assert trial_ssim(prepared.without("t1c").without("t1n"), model) is None
    other = replace(model, spec=model.spec.model_copy(update={"targets": ("t2f",)}))
    assert trial_ssim(prepared, other) is None


def test_a_network_that_sees_no_axial_slices_is_not_tried(model, prepared):
    other = replace(model, spec=model.spec.model_copy(update={"views": ("coronal",)}))
    assert trial_ssim(prepared, other) is None


def test_without_a_sequence_nothing_is_computed_again(prepared):
    scores = prepared.normalized
    rest = prepared.without("t1n")
    assert set(rest.arrays) == set(rest.measured) == set(rest.grids) == {"t1c", "t2w"}
    assert rest.normalized["t1c"] is scores["t1c"]
    assert rest.foreground is prepared.foreground
