from __future__ import annotations

import numpy as np
import pytest

from app.evaluation.metrics.ssim import official_score
from app.preprocessing.normalization import rescale_as_scored
from app.preprocessing.similarity import ssim_map


def _pair(shape=(30, 34, 26)):
    random = np.random.default_rng(0)
    truth = random.gamma(2, 100, shape).astype(np.float32)
    truth[:8] = 0
    prediction = np.maximum(truth + random.normal(0, 40, shape), 0).astype(np.float32)
    tumour = np.zeros(shape, dtype=bool)
    tumour[12:20, 10:20, 8:16] = True
    return prediction, truth, tumour


def test_equal_to_torchmetrics():
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    prediction, truth, tumour = _pair()
    p, t = rescale_as_scored(prediction), rescale_as_scored(truth)
    expected = [
        float(
            structural_similarity_index_measure(
                torch.from_numpy(p * m)[None, None], torch.from_numpy(t * m)[None, None]
            )
        )
        for m in (~tumour, tumour)
    ]
    np.testing.assert_allclose(official_score(prediction, truth, tumour), expected, atol=1e-6)


def test_dropped_border_leaves_out_five_voxels():
    prediction, truth, tumour = _pair()
    p, t = rescale_as_scored(prediction), rescale_as_scored(truth)
    expected = ssim_map(p * ~tumour, t * ~tumour)[5:-5, 5:-5, 5:-5].mean()
    assert official_score(prediction, truth, tumour, border="drop").healthy == pytest.approx(expected)


def test_identical_volumes_score_one():
    _, truth, tumour = _pair()
    assert official_score(truth, truth, tumour) == pytest.approx((1.0, 1.0))


def test_scale_does_not_matter_but_an_offset_does():
    prediction, truth, tumour = _pair()
    score = official_score(prediction, truth, tumour)
    np.testing.assert_allclose(official_score(prediction * 7, truth, tumour), score, atol=1e-6)
    assert official_score(np.where(prediction > 0, prediction + 500, 0), truth, tumour).healthy < score.healthy - 0.01


def test_empty_mask_gives_one_for_the_tumour():
    prediction, truth, tumour = _pair()
    assert official_score(prediction, truth, np.zeros_like(tumour)).tumour == 1


def test_what_cannot_be_scored():
    prediction, truth, tumour = _pair()
    with pytest.raises(ValueError, match="shapes"):
        official_score(prediction[1:], truth, tumour)
    prediction[0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        official_score(prediction, truth, tumour)
