from __future__ import annotations

import numpy as np
import pytest
import torch

from app.core.errors import UsageError
from app.training.config import load_recipe
from app.training.data.cache import build_cache
from app.training.data.sections import SliceData
from app.training.data.slices import Sampler
from app.training.data.variation.scanners import QUANTILES
from app.training.tasks.synthesis_batches import cut_close, vary_slices
from app.training.tasks.synthesis_recipe import SynthesisAugmentation
from tests.training.helpers import changed

DATA = SliceData(axial=(48, 48), views=("axial",), min_brain_pixels=200)
STILL = SynthesisAugmentation(flip=0.0, contrast=0.0, brightness=0.0, shift=0)


@pytest.fixture(scope="module")
def subjects(training_data, training_cache):
    return build_cache(training_data, training_cache)


def _batch(subjects, neighbours=0):
    sampler = Sampler(subjects, DATA, -1.0, neighbours=neighbours, quantiles=QUANTILES)
    return sampler.draw(sampler.plan(0), sampler.own(0), 4)


@pytest.mark.parametrize(
    "name,amount",
    [
        ("contrast", 0.3),
        ("noise", 0.3),
        ("gamma", 0.3),
        ("bias", 0.3),
        ("thick", 4.0),
        ("fade", 1.0),
        ("thick_exam", 4.0),
    ],
)
def test_what_varies_inputs_leaves_the_truth(subjects, name, amount):
    batch = _batch(subjects)
    truth, seen = vary_slices(batch, changed(STILL, **{name: amount}), 0, np.random.default_rng(0))
    assert torch.equal(truth.images, batch.images)
    assert not torch.equal(seen, batch.images)


@pytest.mark.parametrize("name", ["scanner", "sharpness"])
def test_another_scanner_has_another_truth(subjects, name):
    batch = _batch(subjects)
    truth, seen = vary_slices(batch, changed(STILL, **{name: 0.5}), 0, np.random.default_rng(0))
    assert not torch.equal(truth.images, batch.images)
    assert torch.equal(seen, truth.images)


def test_nothing_asked_for_changes_nothing(subjects):
    batch = _batch(subjects)
    truth, seen = vary_slices(batch, STILL, 0, np.random.default_rng(0))
    assert torch.equal(truth.images, batch.images)
    assert torch.equal(seen, batch.images)


def test_neighbours_vary_as_their_slice_does(subjects):
    recipe = changed(STILL, flip=0.5, rotate=20.0, zoom=0.1, contrast=0.2, brightness=0.2, gamma=0.2, bias=0.3,
                     thick=4.0, fade=0.5, scanner=0.5, sharpness=0.5)  # fmt: skip
    batch = _batch(subjects, neighbours=1)
    truth, seen = vary_slices(batch, recipe, 1, np.random.default_rng(0))
    assert seen.shape == (4, 12, 48, 48)
    assert truth.images.shape == (4, 4, 48, 48)
    # A slice that is its own neighbour is shown three times alike.
    for name in ("images", "brain", "labels"):
        values = getattr(batch, name)
        values[:] = values[::3].repeat_interleave(3, dim=0)
    _, seen = vary_slices(batch, recipe, 1, np.random.default_rng(0))
    assert torch.equal(seen[:, :4], seen[:, 4:8])
    assert torch.equal(seen[:, :4], seen[:, 8:])


def test_what_a_pass_makes_is_the_middle_and_those_nearest(subjects):
    batch = _batch(subjects, neighbours=2)
    truth, seen = vary_slices(batch, STILL, 2, np.random.default_rng(0), slices=3)
    assert truth.images.shape == (4 * 3, 4, 48, 48)
    for number in range(4):
        assert torch.equal(truth.images[3 * number : 3 * number + 3], batch.images[5 * number : 5 * number + 3])
        assert torch.equal(seen[number, 4:8], truth.images[3 * number + 1])
    one, other = truth.pieces(2, 3)
    assert torch.equal(torch.cat([one.images, other.images]), truth.images)
    assert len(one) == len(other) == 6


def test_scanners_are_for_scores_of_volumes():
    with pytest.raises(UsageError, match=r"scanner needs normalization.scheme = 'volume'"):
        load_recipe("r8", ["augmentation.scanner=0.3"])


def test_cut_close_all_parts_are_cut_alike_and_no_brain_is_lost(subjects, monkeypatch):
    # These brains are small.
    monkeypatch.setattr("app.preprocessing.slices.CLOSE_SIDE", 16)
    data = changed(DATA, axial=(112, 128))
    batch = Sampler(subjects, data, -1.0).draw(*(np.random.default_rng(i) for i in (0, 1)), 4, max_shift=20)
    seen = batch.images + 1
    sizes = set()
    for seed in range(8):
        cut, shown = cut_close(batch, seen, 8, np.random.default_rng(seed))
        assert cut.brain.sum() == batch.brain.sum()
        assert torch.equal(shown, cut.images + 1)
        assert cut.images.shape[2:] == cut.brain.shape[2:] == cut.labels.shape[1:]
        assert (cut.labels > 0).sum() == (batch.labels > 0).sum()
        assert all(n % 8 == 0 for n in cut.labels.shape[1:])
        sizes.add(cut.labels.shape[1:])
    # The rim is drawn.
    assert len(sizes) > 1
    assert all(rows <= 112 and columns < 128 for rows, columns in sizes)
