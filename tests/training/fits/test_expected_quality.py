from __future__ import annotations

import numpy as np
import pytest

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.preprocessing.expected_quality import FEATURES
from app.training.fits.expected_quality import LeftOut, fit_quality

RANDOM = np.random.default_rng(0)


def _rows(subjects=40, noise=0.0):
    """SSIM falls by 0.1 where views disagree e times as much; T2w's are 0.05 higher than the others'."""
    rows = []
    for number in range(subjects):
        for target in MODALITIES:
            disagreement, trial = float(np.exp(RANDOM.uniform(-3, -1))), float(RANDOM.uniform(0.3, 0.7))
            statistics = {
                "t1n coarseness": float(RANDOM.uniform(1, 3)),
                "a b correlation": float(RANDOM.uniform(-1, 1)),
            }
            ssim = 0.4 + 0.05 * (target == "t2w") - 0.1 * np.log(disagreement) + noise * RANDOM.standard_normal()
            rows.append(LeftOut(f"s{number}", target, statistics, trial, disagreement, float(ssim), float(20 * ssim)))
    return rows


EXAMS = [{"brain ml": 1200.0, "t1n ratio": 2.0}, {"brain ml": 1500.0, "t1n ratio": 3.0}]


def test_a_line_is_found():
    model = fit_quality(_rows(), EXAMS)
    assert model.ssim.slopes["disagreement"] / model.deviations["disagreement"] == pytest.approx(-0.1, rel=0.02)
    assert abs(model.ssim.slopes["coarseness"]) < 0.002
    assert model.ssim.constants["t2w"] - model.ssim.constants["t1c"] == pytest.approx(0.05, abs=0.002)
    found = model.expect({"t1n coarseness": 2.0, "a b correlation": 0.3}, "t2w", 0.5, 0.1)
    assert found.ssim.value == pytest.approx(0.45 + 0.1 * np.log(10), abs=0.005)
    assert found.psnr.value == pytest.approx(20 * found.ssim.value, abs=0.1)


def test_nine_of_ten_new_exams_lie_in_the_interval():
    model, new = fit_quality(_rows(noise=0.05), EXAMS), _rows(subjects=200, noise=0.05)
    found = [model.expect(r.statistics, r.target, r.trial, r.disagreement).ssim for r in new]
    held = [estimate.low <= row.ssim <= estimate.high for estimate, row in zip(found, new, strict=True)]
    assert 0.85 < np.mean(held) < 0.95
    assert 0.12 < model.ssim.below + model.ssim.above < 0.22


def test_the_ranges_are_those_of_the_exams():
    model = fit_quality(_rows(), EXAMS)
    assert (model.exams, dict(model.ranges)) == (2, {"brain ml": (1200.0, 1500.0), "t1n ratio": (2.0, 3.0)})


def test_a_row_survives_the_disk():
    from dataclasses import asdict

    row = _rows(1)[0]
    assert LeftOut.from_json(asdict(row)) == row


@pytest.mark.parametrize("rows", [_rows(2), [r for r in _rows(5) if r.target != "t1c"]])
def test_too_few_are_refused(rows):
    with pytest.raises(UsageError, match="three subjects"):
        fit_quality(rows, EXAMS)
    with pytest.raises(UsageError, match="three subjects"):
        fit_quality(_rows(4), [])


def test_features_that_never_vary_do_no_harm():
    rows = [LeftOut(f"s{n}", m, {"t1n coarseness": 1.0, "a b correlation": 0.5}, 0.5, 0.1, 0.6, 20.0) for n in range(4)
            for m in MODALITIES]  # fmt: skip
    model = fit_quality(rows, EXAMS)
    assert set(model.deviations) == set(FEATURES)
    assert model.expect(rows[0].statistics, "t1c", 0.5, 0.1).ssim.value == pytest.approx(0.6, abs=1e-6)
