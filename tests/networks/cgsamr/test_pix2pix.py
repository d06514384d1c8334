from __future__ import annotations

import pytest
import torch

from app.networks.architectures import CgSamrConfig
from app.networks.cgsamr import new_simulator


def _size(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("width", [16, 64])
def test_the_baseline_is_as_large(width):
    with torch.device("meta"):
        own, plain = (new_simulator(CgSamrConfig(form, width=width)) for form in ("cgsamr", "pix2pix"))
    assert _size(plain) == pytest.approx(_size(own), rel=0.1)


def test_it_is_called_alike():
    config = CgSamrConfig("pix2pix", width=4)
    made = new_simulator(config)(torch.zeros(1, config.inputs, 32, 48))
    assert made.image.shape == (1, 4, 32, 48)
    assert made.confidence is None
