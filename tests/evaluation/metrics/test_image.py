from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.evaluation.metrics.image import image_scores, pixel_accuracy, stripe_score, tumour_shell
from app.evaluation.metrics.ssim import mean_ssim
from app.preprocessing.normalization import rescale_as_scored
from app.preprocessing.similarity import ssim_map


def _pair(seed: int = 0, shape: tuple[int, int, int] = (36, 40, 34)):
    random = np.random.default_rng(seed)
    truth = np.zeros(shape, dtype=np.float32)
    truth[8:28, 7:33, 9:30] = random.gamma(4, 100, (20, 26, 21))
    noise = random.normal(0, 60, shape)
    prediction = np.where(truth > 0, np.maximum(truth + noise, 1), 0).astype(np.float32)
    tumour = np.zeros(shape, dtype=bool)
    tumour[12:18, 12:20, 14:20] = True
    return prediction, truth, tumour


def _close(one: dict[str, float], other: dict[str, float], tolerance: float = 1e-6) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value == pytest.approx(other[name], abs=tolerance, nan_ok=True), name


class TestLaws:
    @settings(max_examples=10, deadline=None)
    @given(seed=st.integers(0, 99), factor=st.floats(0.01, 100))
    def test_positive_scaling_of_the_prediction_changes_nothing(self, seed, factor):
        prediction, truth, tumour = _pair(seed)
        scaled = (prediction * factor).astype(np.float32)
        _close(image_scores(prediction, truth, tumour), image_scores(scaled, truth, tumour), 1e-4)

    @settings(max_examples=8, deadline=None)
    @given(seed=st.integers(0, 99), axes=st.sets(st.integers(0, 2), min_size=1))
    def test_flipping_both_changes_nothing(self, seed, axes):
        """With axes 0 and 1 this is L, P, S to R, A, S."""
        volumes = _pair(seed)
        flipped = [np.flip(v, tuple(axes)) for v in volumes]
        _close(image_scores(*volumes), image_scores(*flipped))

    def test_identical_volumes(self):
        _, truth, tumour = _pair()
        scores = image_scores(truth, truth, tumour)
        assert scores["psnr_brain"] == math.inf
        for name in ("mae_brain", "nmse_brain"):
            assert scores[name] == 0
        for name in set(scores) - {"psnr_brain", "mae_brain", "nmse_brain"}:
            assert scores[name] == pytest.approx(1), name

    @pytest.mark.parametrize("border", ["keep", "drop"])
    def test_content_alone_gives_the_same_mean_as_the_whole_cuboid(self, border):
        prediction, truth, _ = _pair()
        p, t = rescale_as_scored(prediction), rescale_as_scored(truth)
        whole = ssim_map(p, t)
        inner = whole if border == "keep" else whole[5:-5, 5:-5, 5:-5]
        assert mean_ssim(p, t, border) == pytest.approx(inner.mean(), abs=1e-12)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_what_is_not_finite_is_an_error(self, value):
        prediction, truth, tumour = _pair()
        prediction[0, 0, 0] = value
        with pytest.raises(ValueError, match="finite"):
            image_scores(prediction, truth, tumour)


def test_empty_and_absent_masks():
    prediction, truth, tumour = _pair()
    empty = image_scores(prediction, truth, np.zeros_like(tumour))
    absent = image_scores(prediction, truth, None)
    assert empty["official_tumour"] == 1
    assert math.isnan(absent["official_tumour"])
    assert math.isnan(empty["ssim_tumour"])
    assert math.isnan(empty["ssim_shell"])
    assert empty["official_healthy"] == absent["official_healthy"]


def test_all_zero_scores_well_officially_and_badly_inside():
    _, truth, tumour = _pair()
    scores = image_scores(np.zeros_like(truth), truth, tumour)
    assert scores["official_healthy"] > scores["ssim_brain"] + 0.4
    assert scores["ssim_brain"] < 0.1


def test_masks_are_looked_at():
    """An error in the tumour shows in the tumour's scores, and the shell is where it says."""
    _, truth, tumour = _pair()
    wrong = truth.copy()
    wrong[tumour] = truth[tumour][::-1]
    scores = image_scores(wrong, truth, tumour)
    assert scores["ssim_tumour"] < scores["ssim_shell"] < 1
    assert scores["accuracy_tumour"] < scores["accuracy_brain"]
    shell = tumour_shell(tumour, (1.0, 1.0, 1.0), reach=2.0)
    assert not (shell & tumour).any()
    assert shell[10, 15, 16]
    assert not shell[9, 15, 16]


def test_shell_counts_millimetres_not_voxels():
    tumour = np.zeros((30, 30, 30), dtype=bool)
    tumour[15, 15, 15] = True
    shell = tumour_shell(tumour, (1.0, 1.0, 5.0))
    assert shell[25, 15, 15]
    assert shell[15, 15, 17]
    assert not shell[15, 15, 18]


def test_stripes_show_along_their_axis():
    _, truth, _ = _pair()
    t = rescale_as_scored(truth)
    brain = truth > 0
    striped = t + 0.3 * (np.arange(t.shape[2]) % 2)
    assert stripe_score(striped, t, brain, 2) > 1.1
    assert stripe_score(striped, t, brain, 0) == pytest.approx(1)
    blurred = np.full_like(t, 0.5)
    assert stripe_score(blurred, t, brain, 1) == 0


def test_pixel_accuracy():
    truth = np.zeros((2, 2, 2))
    prediction = np.array([0, 0.04, 0.06, 1, 0, 0, 0, 0.2]).reshape(2, 2, 2)
    everywhere = np.ones((2, 2, 2), dtype=bool)
    assert pixel_accuracy(prediction, truth, everywhere) == 5 / 8
    assert math.isnan(pixel_accuracy(prediction, truth, ~everywhere))
