from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from app.core.constants import MODALITIES
from app.training.data.drawn_alike import DrawnAlike
from app.training.data.sections import SliceData
from app.training.data.slices import Batch, Sampler
from app.training.data.variation.scanners import QUANTILES, change_scanners, change_sharpness

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


def test_one_factor_makes_all_fine_detail_stronger():
    """Stripes of one pixel around a plain brain: their height grows by the factor, the mean between them stays."""
    rows = torch.arange(32) % 2 * 2.0 - 1.0
    images = (0.5 + 0.1 * rows)[None, None, :, None].expand(1, 4, 32, 32).clone()
    batch = _plain(images)
    found = set()
    for seed in range(8):
        changed = change_sharpness(batch, 0.7, np.random.default_rng(seed), -1.0).images[0]
        deep = changed[:, 8:-8, 8:-8]
        height = (deep[:, 1::2] - deep[:, ::2]).mean(dim=(1, 2)) / 0.2
        assert (deep.mean(dim=(1, 2)) - 0.5).abs().max() < 1e-3
        assert float(np.exp(-0.7)) - 0.05 <= height.min() <= height.max() <= float(np.exp(0.7)) + 0.05
        # Most of the factor is the exam's.
        assert height.log().max() - height.log().min() < 0.4 * 0.7 + 0.05
        found.add(bool(height.mean() > 1))
    assert found == {True, False}


def test_a_plain_brain_has_no_detail_not_even_at_its_rim():
    batch = _plain(torch.full((2, 4, 32, 32), 0.5))
    inside = torch.zeros(2, 1, 32, 32)
    inside[:, :, 6:26, 9:20] = 1
    batch = replace(batch, brain=inside, images=torch.where(inside > 0, batch.images, torch.tensor(-1.0)))
    changed = change_sharpness(batch, 1.0, np.random.default_rng(0), -1.0)
    torch.testing.assert_close(changed.images, batch.images, atol=1e-5, rtol=0)


def test_sharpness_keeps_to_the_range_and_to_the_brain(batch):
    changed = change_sharpness(batch, 1.5, np.random.default_rng(0), -1.0)
    inside = _inside(batch)
    assert torch.equal(changed.images[~inside], batch.images[~inside])
    assert not torch.equal(changed.images, batch.images)
    low, high = batch.scale[..., 0], batch.scale[..., 1]
    assert (changed.images.amax(dim=(2, 3)) <= high + 1e-4).all()
    shown = torch.where(inside, changed.images, torch.full_like(changed.images, torch.inf))
    assert (shown.amin(dim=(2, 3)) >= low - 1e-4).all()


def _plain(images: torch.Tensor) -> Batch:
    """Slices of brain alone, whose range is -2 to 3."""
    count, _, rows, columns = images.shape
    return Batch(
        images, torch.ones(count, 1, rows, columns), torch.zeros(count, rows, columns, dtype=torch.long),
        torch.ones(count, dtype=torch.bool), torch.tensor([-2.0, 3.0]).expand(count, 4, 2), torch.zeros(count),
        torch.zeros(count), torch.zeros(count, 4, 0), 0,
    )  # fmt: skip
