"""The U-Net in eight bits: the numbers of its equation, and how close it comes to float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from app.networks.int8 import (
    ACTIVATION_MAX,
    PAIR_MAX,
    Int8Convolution,
    Int8UNet,
    Range,
    has_int8,
    measure_ranges,
)
from app.networks.unet import UNet

pytestmark = pytest.mark.skipif(not has_int8(), reason="this processor, or this torch, does not multiply in eight bits")


def _convolution(weight: torch.Tensor, padding: int = 0) -> nn.Conv2d:
    made = nn.Conv2d(*weight.shape[1::-1], weight.shape[-1], padding=padding, bias=False)
    made.weight.data = weight
    return made


def _last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _range(low: float, high: float, channels: int = 1) -> Range:
    return Range([low] * channels, [high] * channels)


class TestConvolution:
    def test_quantized_by_hand(self):
        # -54 to 162 fits into 0 to 216 with S = 1 and Z = 54.
        convolution = Int8Convolution(_convolution(torch.ones(1, 1, 1, 1)), _range(-54, 162))
        values = torch.tensor([-54.0, 0.0, 1.4, 1.6, 162.0, -400.0, 999.0]).reshape(1, 1, 1, 7)
        quantized = convolution.quantized(values)
        assert quantized.dtype == torch.uint8
        assert quantized.flatten().tolist() == [0, 54, 55, 56, 216, 0, 216]

    def test_convolved_by_hand(self):
        # Weights 127 and -1 are whole numbers of S = 1: 127 * 4 - 2 = 506.
        weight = torch.tensor([127.0, -1.0]).reshape(1, 2, 1, 1)
        convolution = Int8Convolution(_convolution(weight), _range(-54, 162, 2))
        seen = convolution.quantized(_last(torch.tensor([4.0, 2.0]).reshape(1, 2, 1, 1)))
        assert convolution(seen).item() == pytest.approx(506.0)

    def test_channels_have_steps_of_their_own(self):
        weight = torch.tensor([1.0, 1.0]).reshape(1, 2, 1, 1)
        convolution = Int8Convolution(_convolution(weight), Range([-54.0, -0.54], [162.0, 1.62]))
        assert convolution.steps.flatten().tolist() == pytest.approx([1.0, 0.01])
        seen = convolution.quantized(_last(torch.tensor([10.0, 0.5]).reshape(1, 2, 1, 1)))
        assert seen.flatten().tolist() == [64, 104]
        # The weight of the second channel, 0.01 of the first's, is one of 127 steps.
        assert convolution(seen).item() == pytest.approx(10.5, abs=0.2)

    def test_the_first_channels_alone(self):
        convolution = Int8Convolution(_convolution(torch.ones(1, 2, 1, 1)), Range([-54.0, -0.54], [162.0, 1.62]))
        assert convolution.quantized(torch.full((1, 1, 1, 1), 10.0)).item() == 64

    def test_padding_is_zero(self):
        convolution = Int8Convolution(_convolution(torch.ones(1, 1, 3, 3), padding=1), _range(-54, 162))
        made = convolution(convolution.quantized(_last(torch.full((1, 1, 3, 3), 10.0))))
        assert made[0, 0, 0, 0].item() == pytest.approx(40.0, abs=1e-3)
        assert made[0, 0, 1, 1].item() == pytest.approx(90.0, abs=1e-3)

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_the_largest_sums_do_not_overflow(self, sign):
        """Two products of the largest numbers fit into 16 bits, which is what older processors add them in."""
        assert ACTIVATION_MAX * (PAIR_MAX + 1) < 2**15
        convolution = Int8Convolution(_convolution(sign * torch.ones(8, 64, 3, 3), padding=1), _range(0, 1, 64))
        made = convolution(convolution.quantized(_last(torch.ones(1, 64, 4, 4))))
        assert made[0, 0, 1, 1].item() == pytest.approx(sign * 64 * 9, rel=1e-5)

    @given(low=st.floats(-50, 0), high=st.floats(0.1, 50), share=st.floats(0, 1))
    def test_what_is_in_the_range_moves_by_half_a_step(self, low, high, share):
        convolution = Int8Convolution(_convolution(torch.ones(1, 1, 1, 1)), _range(low, high))
        value, step = low + share * (high - low), convolution.steps.item()
        restored = (convolution.quantized(torch.full((1, 1, 1, 1), value)).item() - convolution.zero) * step
        assert abs(restored - value) <= 0.501 * step
        assert step <= 2 * (high - low) / ACTIVATION_MAX

    def test_a_range_of_nothing(self):
        convolution = Int8Convolution(_convolution(torch.zeros(1, 1, 1, 1)), _range(0, 0))
        assert convolution(convolution.quantized(torch.zeros(1, 1, 1, 1))).item() == 0


class TestNetwork:
    @pytest.fixture
    def network(self) -> UNet:
        torch.manual_seed(0)
        return UNet(15, 1, (16, 32, 32)).eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @pytest.fixture
    def slices(self) -> torch.Tensor:
        """Smooth, as images are."""
        noise = torch.randn(2, 15, 12, 16, generator=torch.Generator().manual_seed(0))
        return _last(F.interpolate(noise, size=(48, 64), mode="bilinear"))

    @pytest.fixture
    def ranges(self, network, slices):
        with measure_ranges(network) as measured:
            network.features(slices)
            network.features(2 * slices)
            return measured()

    def test_every_tensor_is_measured(self, network, ranges):
        widths = {"down.0": 16, "down.1": 32, "down.2": 32, "up.0": 16, "up.1": 32, "reduce.0": 32, "reduce.1": 32}
        widths |= {"joined.0": 32, "joined.1": 64}
        assert {name: len(own.low) for name, own in ranges.items()} == widths
        assert all(low <= high for own in ranges.values() for low, high in zip(*own, strict=True))

    def test_ranges_hold_all_that_was_seen(self, network, slices):
        with measure_ranges(network) as measured:
            network.features(slices)
            once = measured()
            network.features(3 * slices)
            twice = measured()
        for name, own in once.items():
            assert all(a <= b for a, b in zip(twice[name].low, own.low, strict=True))
            assert all(a >= b for a, b in zip(twice[name].high, own.high, strict=True))

    def test_nothing_watches_afterwards(self, network, slices):
        with measure_ranges(network) as measured:
            pass
        network.features(slices)
        assert measured() == {}

    def test_it_is_close_to_float32(self, network, slices, ranges):
        exact, made = network.features(slices), Int8UNet(network, ranges).features(slices)
        assert made.dtype == torch.float32
        assert (made - exact).std() < 0.06 * exact.std()

    def test_slices_do_not_depend_on_their_neighbours_in_a_batch(self, network, slices, ranges):
        made = Int8UNet(network, ranges)
        assert torch.equal(made(slices)[1:], made(slices[1:]))

    def test_its_inputs_stay(self, network, slices, ranges):
        before = slices.clone()
        Int8UNet(network, ranges)(slices)
        assert torch.equal(slices, before)

    def test_a_tensor_without_range(self, network, ranges):
        with pytest.raises(KeyError, match=r"joined\.0"):
            Int8UNet(network, {n: r for n, r in ranges.items() if n != "joined.0"})

    def test_weights_that_are_no_numbers(self, network, ranges):
        network.downs[0][1].bias[0] = torch.nan
        with pytest.raises(ValueError, match="not finite"):
            Int8UNet(network, ranges)
