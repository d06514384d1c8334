from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.networks.infuser import CodeEmbedding, Infuser, SelfAttention, sinusoidal_code

CONFIGS = {
    "plain": {"view_code": False},
    "view": {},
    "intensity": {"intensity_code": True},
    "learned": {"position": "learned", "table_size": 5},
    "released": {"position": "learned", "activation": "silu"},
}


def _codes(count=2):
    return torch.arange(count) % 4, torch.arange(count) % 3, torch.linspace(0.1, 0.9, count)


@pytest.mark.parametrize("shape", [(2, 32, 3, 5), (1, 32, 5, 5), (2, 64, 1, 1)], ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_shape_stays(config, shape):
    network = Infuser(shape[1], depth=1, **config).eval()
    out = network(torch.randn(shape), *_codes(shape[0]))
    assert out.shape == shape
    assert torch.isfinite(out).all()


@given(st.floats(-100, 100))
def test_a_sinusoidal_code_is_sines_and_cosines_of_one_angle(number):
    code = sinusoidal_code(torch.tensor([number]), 16)[0]
    torch.testing.assert_close(code[:8] ** 2 + code[8:] ** 2, torch.ones(8), rtol=0, atol=1e-5)
    assert code[0] == pytest.approx(float(torch.sin(torch.tensor(number))), abs=1e-5)


def test_unlike_numbers_have_unlike_codes():
    embedding = CodeEmbedding(32)
    one, other, same = embedding(torch.tensor([0, 1, 0]))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("config,argument", [({}, 1), ({}, 2), ({"intensity_code": True}, 3)])
def test_each_code_changes_the_result(config, argument):
    torch.manual_seed(0)
    network = Infuser(32, depth=1, **config).eval()
    arguments = [torch.randn(2, 32, 3, 4), *_codes()]
    before = network(*arguments)
    arguments[argument] = arguments[argument].flip(0)
    assert not torch.allclose(before, network(*arguments))


@pytest.mark.parametrize("config,message", [({}, "view code"), ({"intensity_code": True}, "intensity code")])
def test_a_code_that_lacks_is_asked_for(config, message):
    codes = _codes()[: 1 + bool(config)]
    with pytest.raises(ValueError, match=message):
        Infuser(32, depth=1, **config)(torch.randn(2, 32, 3, 4), *codes)


def test_attention_is_torchs_own():
    torch.manual_seed(0)
    ours, theirs = SelfAttention(32, 4), torch.nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.in_proj.weight.data, ours.in_proj.bias.data
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    x = torch.randn(2, 7, 32)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0], rtol=1e-5, atol=1e-6)
