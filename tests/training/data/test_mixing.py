from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.training.data.mixing import mixed_weights
from app.training.data.patches import PatchSampler
from app.training.data.sections import PatchData, SliceData
from app.training.data.slices import Sampler


@given(
    st.lists(st.tuples(st.floats(0.01, 1), st.booleans()), min_size=2, max_size=8),
    st.floats(0, 0.99),
)
def test_simulated_exams_have_their_share_and_real_ones_their_proportions(rows, share):
    marks = [mark for _, mark in rows]
    weights = np.array([w for w, _ in rows]) / sum(w for w, _ in rows)
    mixed = mixed_weights(weights, marks, share)
    if not any(marks) or all(marks):
        assert np.array_equal(mixed, weights)
        return
    assert mixed.sum() == pytest.approx(1)
    assert mixed[marks].sum() == pytest.approx(share)
    real = ~np.array(marks)
    assert np.allclose(mixed[real] / mixed[real].sum(), weights[real] / weights[real].sum())


def test_slices_are_drawn_by_their_share(subjects):
    both = [*subjects, replace(subjects[0], simulated=True)]
    data = SliceData(axial=(48, 48), views=("axial",), min_brain_pixels=200, simulated_share=0.25)
    sampler, random = Sampler(both, data, -1.0), np.random.default_rng(0)
    drawn = [sampler.choose("axial", random)[0].simulated for _ in range(400)]
    assert np.mean(drawn) == pytest.approx(0.25, abs=0.07)


def test_patches_are_drawn_by_their_share(subjects):
    both = [*subjects, replace(subjects[0], simulated=True)]
    sampler = PatchSampler(both, PatchData(patch=(16, 16, 16), simulated_share=0.25), -1.0)
    random = np.random.default_rng(0)
    drawn = [sampler._choose(random) for _ in range(400)]
    assert np.mean(np.array(drawn) == len(subjects)) == pytest.approx(0.25, abs=0.07)


def test_without_simulated_exams_draws_are_as_before(subjects):
    sampler = PatchSampler(subjects, PatchData(patch=(16, 16, 16)), -1.0)
    assert sampler._choose(np.random.default_rng(5)) == np.random.default_rng(5).integers(len(subjects))
