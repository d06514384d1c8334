from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.inference.simulation.manipulation import (
    change_contrast,
    inside_share,
    mirror_lesion,
    move_lesion,
    scale_lesion,
    shift_lesion,
)

SHAPE = (40, 48, 36)
BRAIN = np.zeros(SHAPE, bool)
BRAIN[4:36, 4:44, 4:32] = True


def _lesion(radius=6.0, centre=(14, 20, 18)):
    """A ball: core, rim of oedema."""
    distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(np.indices(SHAPE), centre, strict=True)))
    labels = np.where(distance < radius, 2, 0)
    return np.where(distance < radius / 2, 1, labels).astype(np.uint8)


class TestScale:
    @pytest.mark.parametrize("factor", [0.5, 2.0])
    def test_the_volume_changes_by_the_factor(self, factor):
        before, after = _lesion(10.0), scale_lesion(_lesion(10.0), factor)
        assert np.count_nonzero(after) / np.count_nonzero(before) == pytest.approx(factor, rel=0.15)
        assert np.count_nonzero(after == 1) / np.count_nonzero(before == 1) == pytest.approx(factor, rel=0.15)

    def test_the_centre_stays(self):
        centres = [np.argwhere(labels > 0).mean(axis=0) for labels in (_lesion(), scale_lesion(_lesion(), 2.0))]
        assert np.abs(centres[0] - centres[1]).max() < 0.6

    def test_a_factor_of_1_changes_nothing(self):
        assert np.array_equal(scale_lesion(_lesion(), 1), _lesion())

    def test_a_voxel_does_not_vanish(self):
        labels = np.zeros(SHAPE, np.uint8)
        labels[5, 5, 5] = 3
        assert scale_lesion(labels, 0.1).any()

    @given(st.floats(0.1, 10), st.tuples(*(st.integers(0, n - 1) for n in SHAPE)))
    def test_no_new_label_and_no_loss_of_all(self, factor, centre):
        labels = _lesion(4.0, centre)
        scaled = scale_lesion(labels, factor)
        assert scaled.any()
        assert set(np.unique(scaled)) <= set(np.unique(labels)) | {0}


def test_mirrored_twice_is_itself():
    mirrored = mirror_lesion(_lesion(), BRAIN)
    assert np.argwhere(mirrored > 0).mean(axis=0) == pytest.approx([39 - 14, 20, 18])
    assert np.array_equal(mirror_lesion(mirrored, BRAIN), _lesion())


@given(st.tuples(*(st.integers(-8, 8) for _ in range(3))))
def test_a_shift_and_back(shift):
    labels = _lesion(5.0, (20, 22, 17))
    moved = shift_lesion(labels, shift)
    assert np.argwhere(moved > 0).mean(axis=0) == pytest.approx(np.array([20, 22, 17]) + shift)
    assert np.array_equal(shift_lesion(moved, [-s for s in shift]), labels)


class TestMove:
    def test_it_stays_in_the_brain(self):
        for seed in range(5):
            moved, shift = move_lesion(_lesion(), BRAIN, np.random.default_rng(seed))
            assert any(shift)
            assert inside_share(moved, BRAIN) >= 0.98
            assert np.array_equal(moved, shift_lesion(_lesion(), shift))

    def test_the_seed_decides(self):
        both = [move_lesion(_lesion(), BRAIN, np.random.default_rng(7))[1] for _ in range(2)]
        assert both[0] == both[1]

    def test_where_there_is_no_place_it_stays(self):
        whole = BRAIN.astype(np.uint8)
        tight, shift = move_lesion(whole, BRAIN, np.random.default_rng(0))
        assert shift == (0, 0, 0) or inside_share(tight, BRAIN) >= 0.98


def test_shares():
    half = np.zeros(SHAPE, np.uint8)
    half[2:6, 10, 10] = 1
    assert inside_share(half, BRAIN) == 0.5
    assert inside_share(np.zeros(SHAPE, np.uint8), BRAIN) == 0


class TestContrast:
    SHAPE = (20, 20, 20)

    def _exam(self):
        labels, brain = np.zeros(self.SHAPE, np.uint8), np.zeros(self.SHAPE, bool)
        brain[2:-2, 2:-2, 2:-2], labels[6:14, 6:14, 6:14] = True, 3
        image = np.where(brain, np.float32(10), np.float32(-1)).astype(np.float32)
        image[labels > 0] = 30
        return image, labels, brain

    @pytest.mark.parametrize("factor", [0.5, 2.0])
    def test_what_a_lesion_has_beyond_the_brain_is_multiplied(self, factor):
        image, labels, brain = self._exam()
        changed = change_contrast(image, labels, brain, factor)
        assert changed[10, 10, 10] == pytest.approx(10 + 20 * factor, rel=0.01)
        assert changed[3, 3, 3] == pytest.approx(10)
        assert changed[0, 0, 0] == -1

    def test_one_changes_nothing(self):
        image, labels, brain = self._exam()
        np.testing.assert_array_equal(change_contrast(image, labels, brain, 1.0), image)

    def test_without_a_lesion_or_a_healthy_brain_nothing_changes(self):
        image, labels, brain = self._exam()
        for others in (np.zeros_like(labels), np.full_like(labels, 2)):
            np.testing.assert_array_equal(change_contrast(image, others, brain, 0.5), image)
