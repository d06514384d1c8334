from __future__ import annotations

import pytest
import torch

from app.networks.architectures import TISSNET_WIDTHS, TissNetConfig
from app.networks.tissnet.model import TissNet, refine

SMALL = TissNetConfig(widths=(4, 4, 6, 6, 8), sources=3, regions=3)


def test_shapes_and_ranges():
    output = TissNet(SMALL)(torch.randn(2, 3, 32, 32, 8))
    assert output.synthesis.shape == (2, 1, 32, 32, 8)
    assert output.synthesis.abs().max() <= 1
    for answer in (output.coarse, output.fine, output.error, output.refined):
        assert answer.shape == (2, 3, 32, 32, 8)
        assert ((answer >= 0) & (answer <= 1)).all()


@pytest.mark.parametrize(
    "coarse,error,expected", [(0.0, 0.0, 0.0), (0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0), (0.8, 0.25, 0.65)]
)
def test_equation_7(coarse, error, expected):
    assert refine(torch.tensor(coarse), torch.tensor(error)).item() == pytest.approx(expected)


def test_the_segmentation_teaches_the_synthesis():
    torch.manual_seed(0)
    network = TissNet(SMALL)
    network(torch.randn(1, 3, 32, 32, 8)).fine.sum().backward()
    for name, parameter in network.generator.named_parameters():
        assert parameter.grad is not None, name
    assert all(p.grad.abs().sum() > 0 for p in network.generator.first.head.parameters())


@pytest.mark.parametrize("apart", [False, True])
def test_the_coarse_answer_can_be_left_to_its_own_loss(apart):
    torch.manual_seed(0)
    network = TissNet(SMALL)
    output = network(torch.randn(1, 3, 32, 32, 8), coarse_apart=apart)
    (output.fine.sum() + output.error.sum()).backward()
    moved = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.generator.second.head.parameters()]
    assert moved == [not apart] * len(moved)
    # The made sequence is taught either way.
    assert all(p.grad.abs().sum() > 0 for p in network.generator.first.head.parameters())


@pytest.mark.parametrize("preset", TISSNET_WIDTHS)
def test_presets_have_five_levels(preset):
    assert len(TISSNET_WIDTHS[preset]) == 5


def test_the_papers_preset_has_about_its_number_of_parameters():
    with torch.device("meta"):
        network = TissNet(TissNetConfig(TISSNET_WIDTHS["paper"], 3, 1))
    both = [*network.generator.parameters(), *network.segmentor.parameters()]
    assert sum(p.numel() for p in both) == pytest.approx(126.96e6, rel=0.02)
