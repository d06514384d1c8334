from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from app.networks.blocks3d import ConvPair3d, ConvUnit3d, Decoder3d, InstanceNorm3d, Leaky

BLOCKS = {
    "norm": (lambda: InstanceNorm3d(4), (2, 4, 8, 4, 6), (2, 4, 8, 4, 6)),
    "unit": (lambda: ConvUnit3d(3, 5), (2, 3, 8, 4, 6), (2, 5, 8, 4, 6)),
    "strided": (lambda: ConvUnit3d(3, 5, 2), (2, 3, 8, 4, 6), (2, 5, 4, 2, 3)),
    "pair": (lambda: ConvPair3d(3, 5, 2), (2, 3, 8, 4, 6), (2, 5, 4, 2, 3)),
}


@pytest.mark.parametrize("block,before,after", BLOCKS.values(), ids=BLOCKS)
def test_shapes(block, before, after):
    assert block()(torch.randn(before)).shape == after


def test_a_decoder_gives_features_in_the_shape_of_each_skip():
    levels = [torch.randn(1, width, n, n, n) for width, n in ((4, 16), (8, 8), (12, 4))]
    features = Decoder3d((4, 8, 12))(levels)
    assert [f.shape for f in features] == [level.shape for level in levels]
    assert torch.equal(features[-1], levels[-1])


def test_the_norm_is_torchs():
    x = torch.randn(2, 4, 6, 5, 4)
    torch.testing.assert_close(InstanceNorm3d(4)(x), F.instance_norm(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_activation_overwrites_its_input_only_without_gradients(training):
    x = torch.randn(3, 4)
    before = x.clone()
    with torch.set_grad_enabled(training):
        out = Leaky()(x)
    torch.testing.assert_close(out, F.leaky_relu(before, 0.01))
    assert torch.equal(x, before) is training
