from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from app.networks.blocks import (
    ChannelGate,
    Downsample,
    Encoder,
    GroupedConv2d,
    GroupedNorm,
    PreActivation,
    ResidualBlock,
    Upsample,
    group_norm,
)


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


BLOCKS = {
    "convolution": (lambda: GroupedConv2d(3, 5, 3, padding=1), (2, 3, 8, 12), (2, 5, 8, 12)),
    "norm": (lambda: GroupedNorm(16), (2, 16, 8, 12), (2, 16, 8, 12)),
    "activation": (lambda: PreActivation(8, 16), (2, 8, 8, 12), (2, 16, 8, 12)),
    "residual": (lambda: ResidualBlock(16, 16), (2, 16, 8, 12), (2, 16, 8, 12)),
    "widening": (lambda: ResidualBlock(8, 16), (2, 8, 8, 12), (2, 16, 8, 12)),
    "down": (lambda: Downsample(8), (2, 8, 8, 12), (2, 8, 4, 6)),
    "up": (lambda: Upsample(8), (2, 8, 4, 6), (2, 8, 8, 12)),
    "gate": (lambda: ChannelGate(8), (2, 8, 4, 6), (2, 8, 1, 1)),
}


@pytest.mark.parametrize("block,before,after", BLOCKS.values(), ids=BLOCKS)
def test_shapes(block, before, after):
    out = block()(torch.randn(before))
    assert out.shape == after
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("members", [1, 4])
def test_a_member_is_a_block_of_its_own_with_its_share_of_the_parameters(members):
    torch.manual_seed(0)
    block, alone = ResidualBlock(8, 16, members=members).eval(), ResidualBlock(8, 16).eval()
    x = torch.randn(2, 8, 8, 12)
    for member in range(members):
        alone.load_state_dict({k: v.chunk(members)[member] for k, v in block.state_dict().items()})
        torch.testing.assert_close(block(x, member), alone(x), rtol=1e-5, atol=1e-5)


def test_an_encoder_halves_at_every_stage_but_the_last():
    features = Encoder(1, (8, 8, 16, 16, 24))(torch.randn(1, 1, 32, 48))
    assert [tuple(f.shape[1:]) for f in features] == [(8, 32, 48), (8, 16, 24), (16, 8, 12), (16, 4, 6), (24, 2, 3)]


def test_a_gate_is_between_nought_and_one():
    gate = ChannelGate(8)(100 * torch.randn(2, 8, 4, 6))
    assert gate.min() >= 0
    assert gate.max() <= 1


def test_down_sampling_pads_below_and_to_the_right():
    block = Downsample(1)
    x = torch.randn(1, 1, 8, 8)
    padded = F.pad(x, (0, 1, 0, 1))
    torch.testing.assert_close(block(x), F.conv2d(padded, block.conv.weight, block.conv.bias, stride=2))
