from __future__ import annotations

import numpy as np
import pytest
import torch

from app.core.constants import MODALITIES
from app.training.data.drawn_alike import DrawnAlike
from app.training.data.sections import SliceData
from app.training.data.slices import Sampler
from app.training.data.variation.scanners import QUANTILES, change_scanners

DATA = SliceData(axial=(48, 48), views=("axial",), min_brain_pixels=200)


@pytest.fixture
def batch(subjects):
    sampler = Sampler(subjects, DATA, -1.0, quantiles=QUANTILES)
    return sampler.draw(sampler.plan(0), sampler.own(0), 6)


def _inside(batch) -> torch.Tensor:
    return (batch.brain > 0) & (batch.images != -1)


def test_quantiles_tell_mean_and_deviation_of_the_volume(batch):
    # Normalized: 0 and 1 but for the voxels of the clip and for what lies between the quantiles.
    assert batch.quantiles.shape == (6, 4, QUANTILES)
    assert (batch.quantiles.diff(dim=2) >= 0).all()
    assert batch.quantiles.mean(dim=2).abs().max() < 0.1
    assert (batch.quantiles.std(dim=2) - 1).abs().max() < 0.1


def test_brighter_voxels_stay_so_and_what_is_outside_stays(batch):
    changed = change_scanners(batch, 0.5, np.random.default_rng(0), -1.0)
    inside = _inside(batch)
    assert torch.equal(changed.images[~inside], batch.images[~inside])
    assert not torch.equal(changed.images, batch.images)
    for before, after, where in zip(
        batch.images.flatten(0, 1), changed.images.flatten(0, 1), inside.flatten(0, 1), strict=True
    ):
        order = before[where].argsort()
        assert (after[where][order].diff() >= -1e-5).all()


def test_it_is_normalized_anew(batch):
    changed = change_scanners(batch, 1.0, np.random.default_rng(0), -1.0)
    assert changed.quantiles.mean(dim=2).abs().max() < 1e-4
    torch.testing.assert_close(changed.quantiles.std(dim=2, correction=0), torch.ones(6, 4))
    low, high = changed.scale[..., 0], changed.scale[..., 1]
    assert (changed.images.amax(dim=(2, 3)) <= high + 1e-4).all()
    shown = torch.where(_inside(batch), changed.images, torch.full_like(changed.images, torch.inf))
    assert (shown.amin(dim=(2, 3)) >= low - 1e-4).all()


def test_without_reach_nothing_changes(batch):
    changed = change_scanners(batch, 0.0, np.random.default_rng(0), -1.0)
    spread = batch.quantiles.std(dim=2, correction=0)[:, :, None, None]
    mean = batch.quantiles.mean(dim=2)[:, :, None, None]
    expected = torch.where(_inside(batch), (batch.images - mean) / spread, batch.images)
    torch.testing.assert_close(changed.images, expected, atol=1e-3, rtol=1e-3)


def test_sequences_of_one_kind_change_more_alike(batch):
    """Of the same values in all sequences, T1n and T1c end nearer to each other than to T2w."""
    alike = batch.images[:, :1].expand(-1, 4, -1, -1)
    same = batch.scale[:, :1].expand(-1, 4, -1), batch.quantiles[:, :1].expand(-1, 4, -1)
    given = type(batch)(**{**vars(batch), "images": alike, "scale": same[0], "quantiles": same[1]})
    apart = {}
    for pair in (("t1n", "t1c"), ("t2w", "t2f"), ("t1n", "t2w")):
        one, two = (MODALITIES.index(m) for m in pair)
        differences = []
        for seed in range(20):
            images = change_scanners(given, 0.5, np.random.default_rng(seed), -1.0).images
            differences.append(float((images[:, one] - images[:, two]).abs().mean()))
        apart[pair] = np.mean(differences)
    assert max(apart["t1n", "t1c"], apart["t2w", "t2f"]) < 0.8 * apart["t1n", "t2w"]


def test_neighbours_are_of_one_exam(batch):
    twice = batch.every(2)
    pairs = type(batch)(**{n: v.repeat_interleave(2, dim=0) if n != "view" else v for n, v in vars(twice).items()})
    changed = change_scanners(pairs, 0.5, DrawnAlike(np.random.default_rng(0), 2), -1.0)
    assert torch.equal(changed.images[::2], changed.images[1::2])
    assert not torch.equal(changed.images[0], changed.images[2])
