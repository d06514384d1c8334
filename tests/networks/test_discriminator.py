from __future__ import annotations

import pytest
import torch

from app.networks.discriminator import Discriminator


@pytest.mark.parametrize("size", [(32, 32), (144, 176)])
def test_the_discriminator_judges_patches_and_names_sequences(size):
    patches, classes = Discriminator(8)(torch.randn(2, 1, *size))
    assert patches.shape[:2] == (2, 1)
    assert patches.shape[2] > 1
    assert classes.shape == (2, 4)


def test_a_patch_is_seventy_pixels():
    network = Discriminator(8)
    image = torch.zeros(1, 1, 160, 160, requires_grad=True)
    # InstanceNorm sees the whole image; without it the reach is that of the convolutions.
    for layer in [m for m in network.features if isinstance(m, torch.nn.InstanceNorm2d)]:
        layer.forward = lambda x: x
    network(image)[0][0, 0, 9, 9].backward()
    rows = torch.nonzero(image.grad[0, 0].abs().sum(dim=1)).flatten()
    assert int(rows[-1] - rows[0]) + 1 == 70
