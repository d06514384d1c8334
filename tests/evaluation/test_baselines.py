from __future__ import annotations

import numpy as np

from app.evaluation.baselines import score_baselines


def test_baselines_are_ordered(complete):
    results = score_baselines(complete, jobs=2)
    means = {name: np.mean([s.values["ssim_brain"] for s in scores]) for name, scores in results.items()}
    assert {len(s) for s in results.values()} == {12}
    assert means["all zero"] < min(means["best copy"], means["regression"])
