from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.inference.slicewise.guided_interpolation import fill_between, guide_weights


def _guides(count: int = 3, depth: int = 9, seed: int = 0) -> torch.Tensor:
    """Independent z-scores of some smoothness, S x D x 16 x 20."""
    noise = np.random.default_rng(seed).normal(size=(count, depth, 16, 20)).astype(np.float32)
    return torch.from_numpy(noise + np.roll(noise, 1, axis=3) + np.roll(noise, 1, axis=2))


def _thinned(volume: torch.Tensor, made: list[int]) -> torch.Tensor:
    """A volume in which all but some slices are no numbers."""
    thin = torch.full_like(volume, torch.nan)
    thin[made] = volume[made]
    return thin


@settings(max_examples=25, deadline=None)
@given(
    weights=st.lists(st.floats(-2, 2), min_size=1, max_size=3),
    offset=st.floats(-3, 3),
    step=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_a_weighted_sum_of_the_exam_is_found_again(weights, offset, step, seed):
    guides = _guides(len(weights), seed=seed)
    whole = sum(w * guide for w, guide in zip(weights, guides, strict=True)) + offset
    made = sorted({*range(0, 9, step), 8})
    stack = _thinned(whole, made)
    fill_between(stack, made, step, guides, torch.ones(whole.shape, dtype=torch.bool))
    plain = _thinned(whole, made)
    fill_between(plain, made, step)
    left, before = (stack - whole).abs().mean(), (plain - whole).abs().mean()
    # What is left is the ridge's.
    assert left <= 0.1 * before + 1e-3
    assert torch.equal(stack[made], whole[made])


def test_without_an_exam_slices_lie_on_straight_lines():
    stack = _thinned(torch.arange(7.0)[:, None, None].expand(7, 4, 4).clone(), [0, 3, 6])
    fill_between(stack, [0, 3, 6], 3)
    assert stack[:, 1, 1].tolist() == pytest.approx(list(range(7)))


def test_an_exam_without_detail_changes_no_line():
    depth = torch.arange(5.0)[:, None, None].expand(5, 8, 8)
    guides, volume = depth[None].clone(), torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(0))
    stack, plain = _thinned(volume, [0, 2, 4]), _thinned(volume, [0, 2, 4])
    fill_between(stack, [0, 2, 4], 2, guides, torch.ones(5, 8, 8, dtype=torch.bool))
    fill_between(plain, [0, 2, 4], 2)
    torch.testing.assert_close(stack, plain)


def test_outside_the_brain_the_exam_does_not_count():
    guides = _guides()
    whole = 2 * guides[0]
    inside = torch.zeros(whole.shape, dtype=torch.bool)
    inside[:, 4:12, 5:15] = True
    # In one slice of the gap the brain ends earlier.
    inside[3, :, 10:] = False
    made = [0, 2, 4, 6, 8]
    stack, plain = _thinned(whole, made), _thinned(whole, made)
    fill_between(stack, made, 2, guides, inside)
    fill_between(plain, made, 2)
    assert torch.equal(stack[3][~inside[3]], plain[3][~inside[3]])
    assert torch.equal(stack[:, 0], plain[:, 0])
    assert not torch.equal(stack[3, 4:12, 5:10], plain[3, 4:12, 5:10])
    # What lies outside says nothing of the inside.
    loud = torch.where(inside, guides, 1e3)
    again = _thinned(whole, made)
    fill_between(again, made, 2, loud, inside)
    torch.testing.assert_close(again[inside], stack[inside])


def test_distant_slices_have_nothing_between_them():
    stack = _thinned(torch.rand(7, 4, 4), [0, 2, 6])
    fill_between(stack, [0, 2, 6], 2)
    assert torch.isfinite(stack[1]).all()
    assert torch.isnan(stack[3:6]).all()
    whole = torch.rand(3, 4, 4)
    before = whole.clone()
    fill_between(whole, [0, 1, 2], 1, torch.rand(2, 3, 4, 4), torch.ones(3, 4, 4, dtype=torch.bool))
    assert torch.equal(whole, before)


def test_weights_by_hand():
    """With one guide: the covariance over the variance and the ridge, the same at each pixel."""
    guide = torch.tensor([1.0, -1.0]).repeat(10)[None, None, None].expand(1, 1, 20, 20).contiguous()
    weights = guide_weights(3 * guide[0] + 5, guide, torch.ones(1, 20, 20, dtype=torch.bool))
    # Of five columns two or three are high: the variance is 1 - (1 / 5) ** 2.
    variance = 1 - 0.2**2
    expected = 3 * variance / (variance + 0.01)
    assert weights[0, 0, 8:12, 8:12].flatten().tolist() == pytest.approx([expected] * 16, rel=1e-4)


def test_weights_are_finite_where_nothing_is():
    weights = guide_weights(torch.rand(2, 9, 9), torch.zeros(3, 2, 9, 9), torch.zeros(2, 9, 9, dtype=torch.bool))
    assert (weights == 0).all()
    twins = torch.rand(1, 2, 9, 9).expand(3, 2, 9, 9)
    assert torch.isfinite(guide_weights(twins[0], twins, torch.ones(2, 9, 9, dtype=torch.bool))).all()
