from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from app.core.constants import CLASSES
from app.networks.architectures import HF_GAN_PRESETS, HfGanConfig, UNetConfig
from app.networks.blocks import Encoder, group_norm
from app.networks.discriminator import Discriminator
from app.networks.hf_gan import HfGan
from app.networks.unet import Segmenter2d, UNetGenerator, code_planes

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


class TestLightNetworks:
    """The segmenter, the plain generator and the discriminator."""

    def test_sizes_are_the_published_ones(self):
        for network in (Segmenter2d(), UNetGenerator(UNetConfig())):
            assert sum(p.numel() for p in network.parameters()) == pytest.approx(1.8e6, rel=0.01)

    @pytest.mark.parametrize("size", [(32, 48), (144, 176)])
    def test_the_segmenter_gives_classes_of_every_pixel(self, size):
        images = torch.randn(2, 4, *size)
        logits = Segmenter2d((8, 8, 16, 16))(images, torch.tensor([0, 2]), torch.tensor([0, -1]))
        assert logits.shape == (2, CLASSES, *size)

    def test_view_and_tumour_type_matter(self):
        torch.manual_seed(0)
        network, images = Segmenter2d((8, 8, 8, 8)), torch.randn(1, 4, 32, 32)

        def run(view: int, kind: int) -> torch.Tensor:
            return network(images, torch.tensor([view]), torch.tensor([kind]))

        assert not torch.equal(run(0, 0), run(1, 0))
        assert not torch.equal(run(0, 0), run(0, 1))
        assert not torch.equal(run(0, 0), run(0, -1))

    def test_code_planes(self):
        planes = code_planes(torch.tensor([1, -1]), 3, torch.zeros(2, 1, 4, 5))
        assert planes.shape == (2, 3, 4, 5)
        assert planes[0].amax(dim=(1, 2)).tolist() == [0, 1, 0]
        assert not planes[1].any()

    def test_the_plain_generator_is_called_like_the_other(self):
        torch.manual_seed(0)
        network = UNetGenerator(UNetConfig((8, 8, 8, 8))).eval()
        images, present, target, view = _inputs()
        made = network(images, present, target, view)
        assert made.shape == (2, 1, 32, 48)
        hidden = images.clone()
        hidden[(present == 0)] = 99.0
        assert torch.equal(made, network(hidden, present, target, view))
        with pytest.raises(ValueError, match="view code"):
            network(images, present, target)

    @pytest.mark.parametrize("size", [(32, 32), (144, 176)])
    def test_the_discriminator_judges_patches_and_names_sequences(self, size):
        patches, classes = Discriminator(8)(torch.randn(2, 1, *size))
        assert patches.shape[:2] == (2, 1)
        assert patches.shape[2] > 1
        assert classes.shape == (2, 4)

    def test_a_patch_is_seventy_pixels(self):
        network = Discriminator(8)
        image = torch.zeros(1, 1, 160, 160, requires_grad=True)
        # InstanceNorm sees the whole image; without it the reach is that of the convolutions.
        for layer in [m for m in network.features if isinstance(m, torch.nn.InstanceNorm2d)]:
            layer.forward = lambda x: x
        network(image)[0][0, 0, 9, 9].backward()
        rows = torch.nonzero(image.grad[0, 0].abs().sum(dim=1)).flatten()
        assert int(rows[-1] - rows[0]) + 1 == 70


def test_quick_group_norm_has_torchs_values_and_gradients():
    torch.manual_seed(0)
    weight, bias = torch.randn(32), torch.randn(32)
    images = torch.randn(2, 32, 12, 20) + 0.5
    slopes = torch.randn_like(images)

    def results(norm, dtype):
        x = images.to(dtype).to(memory_format=torch.channels_last).requires_grad_()
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        out = norm(x, 8, w, b)
        out.backward(slopes.to(out))
        return [t.float() for t in (out.detach(), x.grad, w.grad, b.grad)]

    expected = results(torch.nn.functional.group_norm, torch.float32)
    # Only bfloat16 takes the other way, whose rounding is 2 ** -8.
    for quick, exact in zip(results(group_norm, torch.bfloat16), expected, strict=True):
        assert (quick - exact).abs().max() < 0.02 * exact.abs().max()


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
