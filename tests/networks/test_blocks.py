from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from app.networks.blocks import group_norm


def test_quick_group_norm_has_torchs_values_and_gradients():
    torch.manual_seed(0)
    weight, bias = torch.randn(32), torch.randn(32)
    images = torch.randn(2, 32, 12, 20) + 0.5
    slopes = torch.randn_like(images)

    def results(norm, dtype):
        x = images.to(dtype).to(memory_format=torch.channels_last).requires_grad_()
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        out = norm(x, 8, w, b)
        out.backward(slopes.to(out))
        return [t.float() for t in (out.detach(), x.grad, w.grad, b.grad)]

    expected = results(torch.nn.functional.group_norm, torch.float32)
    # Only bfloat16 takes the other way, whose rounding is 2 ** -8.
    for quick, exact in zip(results(group_norm, torch.bfloat16), expected, strict=True):
        assert (quick - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.mark.parametrize("count", [1, 2])
def test_the_fast_norm_of_volumes_is_torchs(count):
    torch.manual_seed(0)
    x = torch.randn(count, 6, 4, 3, 5, dtype=torch.bfloat16).to(memory_format=torch.channels_last_3d)
    weight, bias = torch.randn(6).bfloat16(), torch.randn(6).bfloat16()
    results = []
    for function in (group_norm, lambda *a: F.group_norm(*a[:4], 1e-5)):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_(True)
        out = function(leaf, 3, weight, bias)
        out.float().square().sum().backward()
        results.append((out.detach().float(), leaf.grad.float()))
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0.05, atol=0.1)
