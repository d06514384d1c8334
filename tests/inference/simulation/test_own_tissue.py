from __future__ import annotations

import numpy as np
import pytest

from app.core.constants import MODALITIES
from app.data.phantom import make_phantom
from app.inference.simulation import own_tissue as module
from app.inference.simulation.own_tissue import own_tissue, tissue_of_exam

SHAPE = (12, 10, 8)


@pytest.fixture
def brain():
    """White matter in front, grey matter behind, fluid in a column of the middle: the same on both sides."""
    images = np.full((4, *SHAPE), -1.0, np.float32)
    inside = np.zeros(SHAPE, bool)
    inside[1:-1, 1:-1, 1:-1] = True
    t1n, t2w = images[MODALITIES.index("t1n")], images[MODALITIES.index("t2w")]
    t1n[inside], t2w[inside] = 0.0, 0.0
    t1n[1:-1, 1:5, 1:-1], t2w[1:-1, 1:5, 1:-1] = 0.5, -0.4
    t1n[5:7, 6:8, 1:-1], t2w[5:7, 6:8, 1:-1] = -0.7, 0.8
    noise = np.random.default_rng(0).normal(0, 0.02, (2, *SHAPE)).astype(np.float32)
    t1n[inside] += noise[0][inside]
    t2w[inside] += noise[1][inside]
    return images, inside


def test_each_tissue_is_told_by_its_brightness(brain):
    tissue = own_tissue(*brain, None)
    assert tissue.dtype == np.uint8
    assert tissue[:, 3, 2, 3].tolist() == [255, 0, 0]
    assert tissue[:, 3, 8, 3].tolist() == [0, 255, 0]
    assert tissue[:, 5, 6, 3].tolist() == [0, 0, 255]
    assert not tissue[:, ~brain[1]].any()


def test_a_lesion_gets_what_the_other_side_has(brain):
    images, inside = brain
    whole = own_tissue(images, inside, None)
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:5, 2:8, 2:5] = 2
    images[:, labels > 0] = 0.9
    assert np.array_equal(own_tissue(images, inside, labels), whole)


def test_where_both_sides_are_ill_nothing_is_known(brain):
    labels = np.zeros(SHAPE, np.uint8)
    labels[2, 3, 3] = labels[-3, 3, 3] = 1
    tissue = own_tissue(*brain, labels)
    assert not tissue[:, 2, 3, 3].any()
    assert not tissue[:, -3, 3, 3].any()


@pytest.mark.parametrize("white,is_told", [(0.5, True), (0.7, False)])
def test_where_nearly_all_is_white_matter_tissues_were_not_told_apart(brain, monkeypatch, white, is_told):
    def fit(images, inside):
        return np.array([white, 0.9 - white, 0.1], np.float32).reshape(3, 1, 1, 1) * inside

    monkeypatch.setattr(module, "tissue_probabilities", fit)
    assert own_tissue(*brain, None).any() == is_told


def test_of_a_brain_that_is_all_lesion_nothing_is_known(brain):
    assert not own_tissue(*brain, np.ones(SHAPE, np.uint8)).any()


def test_of_an_exam_as_scanned():
    phantom = make_phantom((48, 56, 40), seed=3)
    inside = phantom.volumes["t1n"] > 0
    tissue = tissue_of_exam(phantom.volumes, inside, phantom.labels)
    assert tissue.shape[0] == 3
    total = tissue.sum(axis=0, dtype=int)
    known = total[total > 0]
    assert np.abs(known - 255).max() <= 2
