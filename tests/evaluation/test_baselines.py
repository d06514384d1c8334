from __future__ import annotations

import numpy as np
import pytest

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.evaluation.baselines import score_baselines


@pytest.fixture(scope="module")
def results(complete):
    return score_baselines(complete, jobs=2)


def test_baselines_are_ordered(results):
    means = {name: np.mean([s.values["ssim_brain"] for s in scores]) for name, scores in results.items()}
    assert {len(s) for s in results.values()} == {12}
    assert means["all zero"] < min(means["best copy"], means["regression"])


def test_without_a_complete_subject_there_is_nothing_to_score(tmp_path, write_subject):
    write_subject(tmp_path / "s", lacks=("t1c",))
    with pytest.raises(UsageError, match="no complete subject"):
        score_baselines(tmp_path)


def test_the_best_copy_is_one_input_per_target(results):
    for target in MODALITIES:
        copies = [s.values["ssim_brain"] for s in results["best copy"] if s.modality == target]
        assert len(copies) == 3
    # A copy of another sequence has no stripes: its slices step as a scan's do.
    assert all(s.values["stripe_superior"] > 0.3 for s in results["best copy"])
