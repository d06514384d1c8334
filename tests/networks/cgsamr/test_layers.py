from __future__ import annotations

import pytest
import torch
from torch import nn

from app.networks.cgsamr.layers import BatchNorm, Encoder, PlainDecoder, ResidualBlock, conv_block, up_block


def test_batch_norm_is_torchs():
    own, theirs = BatchNorm(3), nn.BatchNorm2d(3)
    for training in (True, False):
        x = torch.randn(4, 3, 5, 6)
        own.train(training)
        theirs.train(training)
        assert torch.allclose(own(x), theirs(x), atol=1e-6)
    assert set(own.state_dict()) == {"weight", "bias", "running_mean", "running_var"}


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_sides(norm):
    x = torch.randn(2, 5, 32, 48)
    widths = (4, 8, 16, 32, 64)
    code = Encoder(5, widths, norm)(x)
    assert code.shape == (2, 64, 2, 3)
    answer = PlainDecoder(7, widths, norm)(code)
    assert answer.shape == (2, 7, 32, 48)
    assert 0 <= answer.min() <= answer.max() <= 1
    assert conv_block(5, 6, norm, kernel=4, stride=2)(x).shape == (2, 6, 16, 24)
    for up in ("transposed", "resize"):
        assert up_block(5, 6, norm, up)(x).shape == (2, 6, 64, 96)
    assert ResidualBlock(5, norm)(x).shape == x.shape


def test_the_encoder_has_five_convolutions_and_three_residual_blocks():
    encoder = Encoder(3, (2, 4, 8, 16, 32), "batch")
    convolutions = [block[0] for block in encoder if isinstance(block, nn.Sequential)]
    assert [(c.kernel_size[0], c.stride[0]) for c in convolutions] == [(7, 1), (4, 2), (4, 2), (4, 2), (4, 2)]
    assert sum(isinstance(block, ResidualBlock) for block in encoder) == 3
