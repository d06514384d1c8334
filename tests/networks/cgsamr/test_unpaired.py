from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from app.networks.architectures import CgSamrConfig
from app.networks.cgsamr.unpaired import UcgSamr

CONFIG = CgSamrConfig("ucgsamr", width=2, prior="tissue", norm="instance")


def test_both_ways():
    network = UcgSamr(CONFIG)
    made = network(torch.zeros(1, 7, 32, 48))
    assert made.image.shape == (1, 4, 32, 48)
    assert made.confidence is not None
    back = network.outline(made.image)
    assert back.shape == (1, 7, 32, 48)
    assert 0 <= back.min() <= back.max() <= 1


@pytest.mark.parametrize("halvings", [2, 3, 4])
def test_a_code_is_as_small_as_there_are_halvings(halvings):
    network = UcgSamr(replace(CONFIG, halvings=halvings))
    code = network.encoder1(torch.zeros(1, 7, 32, 48))
    assert code.shape == (1, 2 * 2**halvings, 32 // 2**halvings, 48 // 2**halvings)
    assert network.encoder2(torch.zeros(1, 4, 32, 48)).shape == code.shape
    made = network.decoder2(code)
    assert made.image.shape == (1, 4, 32, 48)
    assert made.confidence.shape == (1, 4, 16, 24)
    assert network.decoder1(code).shape == (1, 7, 32, 48)


def test_a_label_needs_more_than_a_half(monkeypatch):
    network = UcgSamr(CONFIG)
    answer = torch.zeros(1, 7, 1, 3)
    answer[0, 1:4, 0] = torch.tensor([[0.4, 0.6, 0.2], [0.3, 0.7, 0.3], [0.2, 0.1, 0.9]])
    answer[0, 0] = answer[0, 4:] = 1.0
    monkeypatch.setattr(network, "outline", lambda _: answer)
    assert network.segment(torch.zeros(1, 4, 1, 3)).tolist() == [[[0, 2, 3]]]
