from __future__ import annotations

import numpy as np
import pytest

from app.evaluation.scoring import VolumeScores
from app.evaluation.statistics import compare, summarise


class TestStatistics:
    def test_identical_folders_do_not_differ(self):
        scores = [VolumeScores(f"s{i}", "t1c", {"m": float(i)}) for i in range(5)]
        assert compare(scores, scores)["m"] == {"n": 5, "difference": 0, "low": 0, "high": 0, "p": 1}

    def test_a_subjects_sequences_are_no_witnesses_of_their_own(self):
        gains = {"a": 1.0, "b": 2.0, "c": 3.0}
        first = [VolumeScores(s, m, {"m": g}) for s, g in gains.items() for m in ("t1c", "t1n", "t2f", "t2w")]
        second = [VolumeScores(s.subject, s.modality, {"m": 0.0}) for s in first]
        result = compare(first, second)["m"]
        assert (result["n"], result["difference"]) == (12, 2)
        # Of the eight ways to give three subjects signs, two are as far from none.
        assert result["p"] == pytest.approx(2 / 8)

    def test_interval_covers_the_truth(self):
        random = np.random.default_rng(1)
        covered = 0
        for _ in range(40):
            first = [VolumeScores(f"s{i}", "t1c", {"m": 0.5 + random.normal()}) for i in range(25)]
            second = [VolumeScores(f"s{i}", "t1c", {"m": 0.0}) for i in range(25)]
            result = compare(first, second)["m"]
            covered += result["low"] <= 0.5 <= result["high"]
        assert covered >= 33

    def test_values_that_are_not_finite_are_counted_out(self):
        scores = [VolumeScores("a", "t1c", {"m": float("nan")}), VolumeScores("b", "t1c", {"m": 2.0})]
        assert summarise(scores)["all"]["m"]["n"] == 1
        assert summarise(scores)["all"]["m"]["mean"] == 2
