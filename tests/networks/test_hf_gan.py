from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from app.networks.architectures import HF_GAN_PRESETS, HfGanConfig
from app.networks.blocks import Encoder
from app.networks.hf_gan import Fusion, HfGan

TINY = HfGanConfig(width=16)


def _inputs(batch: int = 2, height: int = 32, width: int = 48) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    images = torch.randn(batch, 4, height, width)
    present = torch.tensor([[1.0, 0, 1, 1]]).repeat(batch, 1)
    return images, present, torch.full((batch,), 1), torch.arange(batch) % 3


@pytest.fixture(scope="module")
def network() -> HfGan:
    torch.manual_seed(0)
    return HfGan(TINY).eval()


def _count(config: HfGanConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in HfGan(config).parameters())


def test_full_width_has_the_released_sizes():
    assert _count(HfGanConfig.released(view_code=False)) == 80_039_041
    assert _count(HfGanConfig.released(view_code=True)) == 80_859_521
    assert HF_GAN_PRESETS["full"] == HfGanConfig.released().width


@pytest.mark.parametrize("preset", HF_GAN_PRESETS)
@pytest.mark.parametrize("size", [(32, 32), (48, 80), (144, 176)])
def test_every_width_takes_any_canvas_of_sixteens(preset, size):
    if preset != "compact" and size == (144, 176):
        size = (64, 48)
    images, present, target, view = _inputs(1, *size)
    with torch.inference_mode():
        out = HfGan(HfGanConfig(width=HF_GAN_PRESETS[preset])).eval()(images, present, target, view)
    assert out.shape == (1, 1, *size)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("members", [(0,), (2,), (0, 3), (0, 2, 3), (1, 2, 3)])
def test_encoders_masked_or_left_out_agree(network, members):
    images, _, target, view = _inputs()
    present = torch.zeros(2, 4)
    present[:, list(members)] = 1
    with torch.inference_mode():
        masked = network(images, present, target, view)
        skipped = network(images, present, target, view, members=members)
    torch.testing.assert_close(masked, skipped, rtol=1e-4, atol=1e-5)


def test_missing_encoder_is_not_run(network, monkeypatch):
    run: list[int | None] = []
    original = Encoder.forward

    def spy(self, x, member=None):
        if self.members > 1:
            run.append(member)
        return original(self, x, member)

    monkeypatch.setattr(Encoder, "forward", spy)
    images, present, target, view = _inputs()
    with torch.inference_mode():
        network(images, present, target, view, members=(0, 2, 3))
    assert run == [0, 2, 3]


def test_pixels_of_a_missing_sequence_do_not_matter(network):
    images, present, target, view = _inputs()
    other = images.clone()
    other[:, 1] = 99.0
    with torch.inference_mode():
        torch.testing.assert_close(
            network(images, present, target, view), network(other, present, target, view), rtol=0, atol=0
        )


def test_a_batch_may_mix_subsets(network):
    images, _, target, view = _inputs()
    present = torch.tensor([[1.0, 0, 1, 1], [0, 0, 1, 0]])
    with torch.inference_mode():
        mixed = network(images, present, target, view)
        alone = [
            network(images[i : i + 1], present[i : i + 1], target[:1], view[i : i + 1], members=m)
            for i, m in enumerate([(0, 2, 3), (2,)])
        ]
    torch.testing.assert_close(mixed, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_one_sequence_alone_bypasses_the_early_encoder(network):
    images, _, target, view = _inputs()
    present = torch.tensor([[0.0, 0, 1, 0]] * 2)
    with torch.inference_mode():
        before = network(images, present, target, view)
        state = network.early.state_dict()
        try:
            for parameter in network.early.parameters():
                parameter.mul_(3)
            after = network(images, present, target, view)
        finally:
            network.early.load_state_dict(state)
    torch.testing.assert_close(before, after)


def _gated(gate, gates, features, early, present):
    """What a fusion gives whose gates are stated, and whose mix adds s to h."""
    count, channels = features.shape[1:3]
    fusion = Fusion(channels, count, gate)
    for module, values in zip(fusion.gates, gates, strict=True):
        module.attn = _Constant(values)
    fusion.mix.weight.data = torch.cat([torch.eye(channels)] * 2, dim=1)[..., None, None]
    fusion.mix.bias.data.zero_()
    with torch.inference_mode():
        return fusion(features, early, present, tuple(range(count)))[0, :, 0, 0]


class _Constant(torch.nn.Module):
    """What a gate's layers give before its sigmoid."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.logit(torch.tensor(values))[None, :, None, None]

    def forward(self, x):
        return self.values.expand(len(x), -1, 1, 1)


class TestGates:
    """Two channels, two sequences of one pixel: small enough to compute by hand."""

    F, EARLY = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])[..., None, None], torch.tensor([[10.0, 20.0]])[..., None, None]
    GATES = ([0.5, 0.25], [0.5, 0.75], [0.1, 0.2])

    def test_per_channel(self):
        made = _gated("channel", self.GATES, self.F, self.EARLY, torch.ones(1, 2))
        # s + h of the second channel: 0.25 * 2 + 0.75 * 4 + 0.2 * 20, and a softmax of 0.25 and 0.75, plus 20.
        share = 1 / (1 + math.exp(0.5))
        expected = [0.5 + 1.5 + 1 + 2 + 10, 0.5 + 3 + 4 + 2 * share + 4 * (1 - share) + 20]
        torch.testing.assert_close(made, torch.tensor(expected))

    def test_released_takes_the_first_channels_gate_for_all(self):
        made = _gated("released", self.GATES, self.F, self.EARLY, torch.ones(1, 2))
        expected = [0.5 + 1.5 + 1 + 2 + 10, 0.5 * 2 + 0.5 * 4 + 0.2 * 20 + 3 + 20]
        torch.testing.assert_close(made, torch.tensor(expected))

    @pytest.mark.parametrize("gate", ["channel", "released"])
    def test_one_sequence_alone_has_its_gate_per_channel(self, gate):
        made = _gated(gate, self.GATES, self.F, self.EARLY, torch.tensor([[0.0, 1.0]]))
        torch.testing.assert_close(made, torch.tensor([0.5 * 3 + 3, 0.75 * 4 + 4]))


@pytest.mark.parametrize("argument,value", [(2, 0), (3, 2)])
def test_target_and_view_change_the_result(network, argument, value):
    arguments = list(_inputs())
    with torch.inference_mode():
        before = network(*arguments)
        arguments[argument] = torch.full_like(arguments[argument], value)
        assert not torch.allclose(before, network(*arguments))


def test_view_code_is_optional_and_asked_for():
    images, present, target, _ = _inputs()
    with torch.inference_mode():
        plain = HfGan(replace(TINY, view_code=False)).eval()
        assert plain(images, present, target).shape == (2, 1, 32, 48)
        with pytest.raises(ValueError, match="view"):
            HfGan(TINY)(images, present, target)


def test_intensity_code_is_an_option_that_matters():
    images, present, target, view = _inputs()
    network = HfGan(replace(TINY, intensity_code=True)).eval()
    with torch.inference_mode():
        dark = network(images, present, target, view, torch.tensor([0.2, 0.2]))
        bright = network(images, present, target, view, torch.tensor([0.7, 0.7]))
        with pytest.raises(ValueError, match="intensity"):
            network(images, present, target, view)
    assert not torch.allclose(dark, bright)


def test_learned_positions_are_interpolated_for_other_canvases():
    config = replace(TINY, position="learned")
    images, present, target, view = _inputs(1, 48, 80)
    with torch.inference_mode():
        assert HfGan(config).eval()(images, present, target, view).shape == (1, 1, 48, 80)


def test_gradients_reach_every_parameter_of_the_present_encoders():
    network = HfGan(TINY)
    images, present, target, view = _inputs()
    network(images, present, target, view).square().mean().backward()
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    # The missing sequence's gate, and what only shifts a softmax or a norm evenly.
    assert all(n.startswith("fusion.gates.1.") for n in silent), silent


def test_mixed_precision_learns_what_float32_does(network):
    images, present, target, view = _inputs()
    grads = []
    for enabled in (False, True):
        net = HfGan(TINY).eval()
        net.load_state_dict(network.state_dict())
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            made = net(images, present, target, view, members=(0, 2, 3))
        made.float().square().mean().backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    assert torch.nn.functional.cosine_similarity(*grads, dim=0) > 0.98
