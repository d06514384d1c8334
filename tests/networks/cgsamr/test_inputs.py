from __future__ import annotations

import pytest
import torch

from app.networks.architectures import CgSamrConfig
from app.networks.cgsamr.inputs import label_planes, network_inputs


def test_planes():
    labels = torch.tensor([[[0, 1], [2, 3]]])
    assert label_planes(labels, 3)[0].flatten(1).tolist() == [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize("prior,outside", [("atlas", -1.0), ("tissue", 0.0)])
def test_brain_lesions_and_prior(prior, outside):
    config = CgSamrConfig(prior=prior)
    brain = torch.tensor([[1.0, 1.0], [1.0, 0.0]]).reshape(1, 1, 2, 2)
    labels = torch.tensor([[[0, 2], [3, 1]]])
    planes = network_inputs(brain, labels, torch.full((1, config.prior_channels, 2, 2), 0.5), config)
    assert planes.shape == (1, config.inputs, 2, 2)
    assert planes[0, :4].flatten(1).tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert (planes[0, 4:].flatten(1) == torch.tensor([0.5, 0.5, 0.5, outside])).all()


def test_without_prior():
    config = CgSamrConfig(prior="none")
    planes = network_inputs(torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2).long(), torch.zeros(1, 0, 2, 2), config)
    assert planes.shape == (1, 4, 2, 2)
