from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.evaluation.metrics.segmentation import EMPTY_DISTANCE_MM, mask_scores, segmentation_scores


class TestSegmentation:
    @staticmethod
    def _cube(low: int, high: int, label: int = 1) -> np.ndarray:
        labels = np.zeros((30, 30, 30), dtype=np.uint8)
        labels[low:high, 10:20, 10:20] = label
        return labels

    def test_identical(self):
        scores = segmentation_scores(self._cube(5, 15, 3), self._cube(5, 15, 3))
        assert scores["dice_ET"] == scores["nsd0.5_TC"] == scores["nsd1_WT"] == 1
        assert scores["hd95_ET"] == scores["assd_WT"] == 0

    def test_a_shift_is_measured_in_millimetres(self):
        near = segmentation_scores(self._cube(5, 15), self._cube(7, 17), (1.0, 1.0, 1.0))
        far = segmentation_scores(self._cube(5, 15), self._cube(7, 17), (3.0, 1.0, 1.0))
        assert near["dice_TC"] == far["dice_TC"] == pytest.approx(0.8)
        assert near["hd95_TC"] == pytest.approx(2)
        assert far["hd95_TC"] == pytest.approx(6)
        assert 0 < near["nsd1_TC"] < 1

    def test_empty_cases_count_as_in_the_challenge(self):
        nothing, something = self._cube(0, 0), self._cube(5, 15, 3)
        both = segmentation_scores(nothing, nothing)
        assert (both["dice_ET"], both["hd95_ET"], both["nsd1_ET"], both["assd_ET"]) == (1, 0, 1, 0)
        for pair in ((nothing, something), (something, nothing)):
            one = segmentation_scores(*pair)
            assert (one["dice_ET"], one["hd95_ET"], one["nsd0.5_ET"]) == (0, EMPTY_DISTANCE_MM, 0)

    def test_shapes_must_match(self):
        with pytest.raises(ValueError, match="shapes"):
            segmentation_scores(np.zeros((3, 3, 3)), np.zeros((3, 3, 4)))


boxes = st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(0, 5), st.integers(1, 6))


def _box(low: int, width: int, start: int, depth: int) -> np.ndarray:
    mask = np.zeros((12, 12, 12), dtype=bool)
    mask[low : low + width, 3:8, start : start + depth] = True
    return mask


class TestLaws:
    @settings(max_examples=20, deadline=None)
    @given(boxes, boxes)
    def test_both_ways_round_the_scores_are_the_same(self, one, other):
        first = mask_scores(_box(*one), _box(*other), (1.0, 1.0, 2.0))
        second = mask_scores(_box(*other), _box(*one), (1.0, 1.0, 2.0))
        assert first == pytest.approx(second, abs=1e-6)
        assert 0 <= first["dice"] <= 1
        assert first["nsd0.5"] <= first["nsd1"]

    @settings(max_examples=10, deadline=None)
    @given(boxes, boxes, st.floats(0.5, 3))
    def test_distances_grow_with_the_voxels(self, one, other, factor):
        small = mask_scores(_box(*one), _box(*other), (1.0, 1.0, 1.0))
        large = mask_scores(_box(*one), _box(*other), (factor, factor, factor))
        assert large["dice"] == small["dice"]
        assert large["hd95"] == pytest.approx(factor * small["hd95"], rel=1e-6)
        assert large["assd"] == pytest.approx(factor * small["assd"], rel=1e-6)
