from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.constants import MODALITIES
from app.evaluation.scoring import VolumeScores
from app.evaluation.statistics import compare, markdown, rows_csv, summarise, table, write_results


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


class TestLaws:
    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
    def test_the_difference_changes_its_sign_with_the_order(self, values):
        first = [VolumeScores(f"s{i}", "t1c", {"m": v}) for i, v in enumerate(values)]
        second = [VolumeScores(f"s{i}", "t1c", {"m": 0.0}) for i in range(len(values))]
        one, other = compare(first, second)["m"], compare(second, first)["m"]
        assert one["difference"] == pytest.approx(-other["difference"])
        assert one["low"] == pytest.approx(-other["high"])
        assert one["p"] == pytest.approx(other["p"])

    @given(st.lists(st.tuples(st.sampled_from(MODALITIES), st.floats(-5, 5)), min_size=1, max_size=12))
    def test_the_groups_of_sequences_make_up_all(self, values):
        scores = [VolumeScores(f"s{i}", m, {"m": v}) for i, (m, v) in enumerate(values)]
        summary = summarise(scores)
        parts = [summary[m]["m"] for m in MODALITIES if m in summary]
        assert sum(p["n"] for p in parts) == summary["all"]["m"]["n"] == len(values)
        assert sum(p["n"] * p["mean"] for p in parts) / len(values) == pytest.approx(summary["all"]["m"]["mean"])


SCORES = [VolumeScores("BraTS-GLI-1-000", "t1c", {"ssim_brain": 0.5, "psnr_brain": float("inf")})]


class TestTables:
    def test_a_table_of_markdown_has_a_rule_below_its_header(self):
        assert markdown([["a", "b"], ["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"

    def test_what_was_not_measured_is_a_dash(self):
        lines = table(summarise(SCORES), "title").splitlines()
        assert lines[0].startswith("| title | n | official_healthy |")
        assert lines[2].startswith("| all | 1 | - | - | 0.500 | - |")

    def test_a_row_for_each_metric(self):
        rows = list(csv.DictReader(rows_csv(SCORES).splitlines()))
        assert [(r["tumour_type"], r["metric"], r["value"]) for r in rows] == [
            ("GLI", "ssim_brain", "0.5"),
            ("GLI", "psnr_brain", "inf"),
        ]

    def test_the_summary_is_valid_json_without_nan(self, tmp_path):
        write_results(tmp_path / "out", SCORES, {"scores": summarise(SCORES)}, ["a problem"])
        form = json.loads((tmp_path / "out" / "summary.json").read_text(), parse_constant=pytest.fail)
        assert form["scores"]["all"]["psnr_brain"]["mean"] is None
        assert form["problems"] == ["a problem"]
