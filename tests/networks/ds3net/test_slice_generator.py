from __future__ import annotations

import pytest
import torch

from app.networks import new_generator
from app.networks.architectures import Ds3NetConfig
from app.networks.ds3net.slice_generator import Ds3NetSliceGenerator

CONFIG = Ds3NetConfig(width=4, blocks=5)
OTHERS = {0: [1, 2, 3], 1: [0, 2, 3], 2: [0, 1, 3], 3: [0, 1, 2]}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Ds3NetSliceGenerator(CONFIG).eval()


@pytest.fixture
def images():
    return torch.rand(4, 4, 32, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_it_is_built_by_its_shape():
    assert isinstance(new_generator(CONFIG), Ds3NetSliceGenerator)
    assert CONFIG.widths == (4, 8, 16)


def test_sources_are_the_others_in_challenge_order(network, images):
    sources = network.sources_of(images, torch.arange(4))
    for target, others in OTHERS.items():
        assert torch.equal(sources[target], images[target, others])


@torch.no_grad()
def test_it_makes_what_the_generator_makes_and_never_looks_at_the_target(network, images):
    target = torch.full((4,), 2)
    made = network(images, torch.ones(4, 4), target)
    assert made.shape == (4, 1, 32, 48)
    assert torch.allclose(made, network.generator(images[:, OTHERS[2]]).image, atol=1e-6)
    images[:, 2] = 0.5
    assert torch.equal(network(images, torch.ones(4, 4), target), made)


@torch.no_grad()
def test_what_is_not_there_is_background(network, images):
    present, target = torch.tensor([[1.0, 0, 1, 1]]).expand(4, -1), torch.full((4,), 2)
    made = network(images, present, target)
    images[:, 1] = CONFIG.background
    assert torch.equal(network(images, torch.ones(4, 4), target), made)


def test_it_does_not_expect_its_error(network):
    with pytest.raises(ValueError, match="without confidence"):
        network.error(torch.zeros(1, 4, 32, 32))
