from __future__ import annotations

import pytest
import torch

from app.networks.architectures import CgSamrConfig
from app.networks.cgsamr.generator import CgSamr, StretchOutDecoder
from tests.training.helpers import gradient_of


@pytest.mark.parametrize("sequences,labels", [(4, 3), (5, 2), (1, 1)])
def test_any_list_of_sequences_and_labels(sequences, labels):
    config = CgSamrConfig(width=2, sequences=sequences, labels=labels)
    assert config.inputs == 1 + labels + 3 * sequences
    made = CgSamr(config)(torch.zeros(2, config.inputs, 32, 48))
    assert made.image.shape == (2, sequences, 32, 48)
    assert made.intermediate.shape == made.confidence.shape == (2, sequences, 16, 24)
    assert made.image.abs().max() <= 1
    assert 0 < made.confidence.min() <= made.confidence.max() < 1


@pytest.mark.parametrize("prior,channels", [("atlas", 12), ("tissue", 3), ("none", 0)])
def test_priors(prior, channels):
    config = CgSamrConfig(width=2, prior=prior)
    assert config.prior_channels == channels
    assert CgSamr(config)(torch.zeros(1, 4 + channels, 32, 32)).image.shape == (1, 4, 32, 32)


def test_without_confidence_nothing_is_made_at_half_scale():
    config = CgSamrConfig(width=2, confidence=False)
    made = CgSamr(config)(torch.zeros(1, config.inputs, 32, 32))
    assert made.intermediate is None
    assert made.confidence is None


def test_each_sequence_has_its_way_up():
    config = CgSamrConfig(width=2, norm="instance")
    decoder = StretchOutDecoder(config)
    decoder(torch.randn(1, 32, 2, 2)).image[:, 1].sum().backward()
    moved = [bool(gradient_of(branch).abs().sum() > 0) for branch in decoder.branches]
    assert moved == [False, True, False, False]
    assert len(StretchOutDecoder(CgSamrConfig(width=2, stretch_out=False)).branches) == 1


def test_the_masked_intermediate_is_fed_back():
    branch = StretchOutDecoder(CgSamrConfig(width=2)).branches[0].eval()
    seen = []
    branch.rise.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    made = branch(torch.randn(1, 32, 2, 2), None)
    assert torch.allclose(seen[0][:, -1:], made.intermediate * made.confidence)


def test_synthesis_and_confidence_have_four_convolutions():
    branch = StretchOutDecoder(CgSamrConfig(width=2)).branches[0]
    for module in (branch.synthesis, branch.judgement):
        assert sum(isinstance(m, torch.nn.Conv2d) for m in module.modules()) == 4


def test_a_skip_shows_the_input_again():
    network = CgSamr(CgSamrConfig(width=2, skip=True)).eval()
    assert CgSamr(CgSamrConfig(width=2)).decoder.branches[0].detail is None
    inputs, code = torch.zeros(1, 16, 32, 32), torch.zeros(1, 32, 2, 2)
    shown = inputs.clone()
    shown[..., 16, 16] = 5.0
    plain, spotted = (network.decoder(code, x).image for x in (inputs, shown))
    changed = (plain != spotted).any(dim=1)[0].nonzero()
    assert len(changed) > 0
    assert (changed - 16).abs().max() <= 4
