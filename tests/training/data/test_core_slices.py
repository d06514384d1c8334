from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from app.data.labels import REGIONS
from app.preprocessing.normalization import BACKGROUND
from app.preprocessing.slices import stack_slices
from app.training.data.core_slices import CoreSampler, CoreSliceData
from tests.training.helpers import changed

DATA = CoreSliceData(views=("axial",), axial=(48, 48), min_brain_pixels=200, tumour_share=1.0)


def _sampler(subjects, seed=0, **changes) -> CoreSampler:
    return CoreSampler(subjects, changed(DATA, **changes), BACKGROUND, seed=seed)


def _chosen(sampler: CoreSampler, count: int = 300) -> list[tuple[str, int]]:
    random = np.random.default_rng(0)
    return [(s.name, i) for s, i in (sampler.choose("axial", random) for _ in range(count))]


def _kinds(subjects, chosen) -> tuple[float, float]:
    """Shares of slices with tumour, and with its core."""
    by_name = {s.name: s for s in subjects}
    ill, core = [], []
    for name, index in chosen:
        labels = stack_slices(np.asarray(by_name[name].labels), "axial")[index]
        ill.append((labels > 0).any())
        core.append(np.isin(labels, REGIONS["TC"]).any())
    return float(np.mean(ill)), float(np.mean(core))


def test_half_of_the_slices_show_the_core_and_all_the_tumour(subjects):
    ill, core = _kinds(subjects, _chosen(_sampler(subjects)))
    assert ill == 1
    assert core == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_the_core_is_the_recipes(subjects, share):
    assert _kinds(subjects, _chosen(_sampler(subjects, core_share=share)))[1] == share


def test_slices_without_tumour_come_where_they_are_asked_for(subjects):
    ill, _ = _kinds(subjects, _chosen(_sampler(subjects, tumour_share=0.0)))
    assert ill < 0.95


def test_a_subject_without_segmentation_shows_any_slice(subjects):
    mixed = [subjects[0], replace(subjects[1], labelled=False)]
    sampler = _sampler(mixed)
    chosen = _chosen(sampler)
    unknown = {i for name, i in chosen if name == mixed[1].name}
    assert unknown == set(mixed[1].slices("axial", 200).tolist())
    assert np.mean([name == mixed[1].name for name, _ in chosen]) == pytest.approx(0.5, abs=0.1)
    assert sampler.count == len(mixed[0].slices("axial", 200, 2)) + len(unknown)


def test_all_without_segmentation_are_drawn_from_too(subjects):
    unlabelled = [replace(s, labelled=False) for s in subjects]
    assert len(_chosen(_sampler(unlabelled), 5)) == 5


def test_step_and_seed_decide(subjects):
    one, two, other = _sampler(subjects), _sampler(subjects), _sampler(subjects, seed=1)
    assert np.array_equal(one.at(3, 2, 0).batch.images, two.at(3, 2, 0).batch.images)
    assert not np.array_equal(one.at(3, 2, 0).batch.images, other.at(3, 2, 0).batch.images)


def test_a_share_is_a_share():
    with pytest.raises(ValidationError, match="core_share must be from 0 to 1"):
        CoreSliceData(core_share=1.5)
