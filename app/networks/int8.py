"""The plain U-Net in whole numbers of eight bits, for processors.

Convolutions take most of a network's time on a processor, and it multiplies small whole numbers faster than float32
(docs/RESULTS.md, "Eight bits"). A value r becomes q = round(r / S) + Z (Jacob et al., CVPR 2018, equation 1), with one
Z per tensor and one S per channel. What a convolution sees has its S multiplied into the weights, which have another
one per channel that is made. Sums are exact; they return to float32 before each normalisation.

Older processors add the products of two neighbouring channels in 16 bits, where two of 255 * 127 do not fit. So
activations end below 255, and the weights of two such channels have a limit together: every processor gets the same
sums.

The first convolution, which sees z-scores, and the last one stay in float32: they are few of the multiplications.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.networks.unet import ConvPair, UNet

Kind = TypeVar("Kind", bound=nn.Module)

#: Largest quantized activation, and weight, and sum of the weights of two neighbouring channels, less their rounding.
ACTIVATION_MAX: Final = 216
WEIGHT_MAX: Final = 127
PAIR_MAX: Final = 32767 // ACTIVATION_MAX - 1
#: Share of a channel's values that its range holds; the few beyond are clipped. They would coarsen all others.
KEPT: Final = 0.9999
#: Values of a channel at which its range is measured, about.
_MEASURED: Final = 40_000
#: Least step between quantized values.
_LEAST: Final = 1e-6


class Range(NamedTuple):
    """Lowest and highest value of each channel of a tensor."""

    low: Sequence[float]
    high: Sequence[float]


#: Of each tensor that is quantized. `down.N` and `up.N`: what the second convolution of level N sees, on the way down
#: or up; `reduce.N`: what is reduced for level N; `joined.N`: that, reduced, beside what level N hands on.
Ranges = Mapping[str, Range]


def has_int8() -> bool:
    """Tell whether this processor and this build of torch multiply in eight bits faster than in float32."""
    fast = torch.backends.cpu.get_cpu_capability() in {"AVX2", "AVX512"}
    has_onednn: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return fast and has_onednn and hasattr(torch.ops.onednn, "qconv2d_pointwise")


class Int8Convolution(nn.Module):
    """A convolution of quantized tensors.

    Args:
        convolution: with weights; stride and dilation 1.
        seen: range of what it sees.
        zero: Z of that; the best for it if not given.

    Raises:
        ValueError: the range is of other channels.
    """

    steps: Tensor

    def __init__(self, convolution: nn.Conv2d, seen: Range, zero: int | None = None) -> None:
        super().__init__()
        weight = convolution.weight.detach().float().cpu()
        if not len(seen.low) == len(seen.high) == convolution.in_channels:
            raise ValueError(f"{convolution.in_channels} channels need as many ranges, not {len(seen.low)}")
        # 0 is in every range, and exact: convolutions pad with it.
        low, high = torch.tensor(seen.low).clamp(max=0), torch.tensor(seen.high).clamp(min=0)
        self.zero = _best_zero(low, high, weight) if zero is None else zero
        steps = _steps(low, high, self.zero)
        self.register_buffer("steps", steps[None, :, None, None])
        folded = weight * self.steps
        scales = _weight_scales(folded)
        whole = (folded / scales[:, None, None, None]).round().to(torch.int8)
        self._padding = [int(n) for n in convolution.padding]
        self._scales, self._zeros = scales, torch.zeros(len(scales), dtype=torch.int64)
        self._bias = None if convolution.bias is None else convolution.bias.detach().float().cpu()
        self._weight = torch.ops.onednn.qconv_prepack(
            whole.contiguous(memory_format=torch.channels_last),
            scales,
            1.0,
            self.zero,
            [1, 1],
            self._padding,
            [1, 1],
            1,
        )

    def quantized(self, x: Tensor) -> Tensor:
        """Give what the convolution sees, or the first channels of that, uint8; `x`, float32, is overwritten.

        In place, since memory takes most of the time on a processor, and by way of int8, which torch rounds to faster:
        128 less, and the highest bit turned, are the same bits.
        """
        whole = x.mul_(1 / self.steps[:, : x.shape[1]]).add_(self.zero - 128).round_()
        return whole.clamp_(-128, ACTIVATION_MAX - 128).to(torch.int8).view(torch.uint8).bitwise_xor_(128)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `quantized` values to float32."""
        out: Tensor = torch.ops.onednn.qconv2d_pointwise(
            x, 1.0, self.zero, self._weight, self._scales, self._zeros, self._bias,
            [1, 1], self._padding, [1, 1], 1, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return out


def _weight_scales(weight: Tensor) -> Tensor:
    """Give the S of each channel that is made, with which its weights stay within both limits."""
    sizes = weight.abs()
    alone = sizes.amax(dim=(1, 2, 3)) / WEIGHT_MAX
    even = F.pad(sizes, (0, 0, 0, 0, 0, sizes.shape[1] % 2))
    together = (even[:, ::2] + even[:, 1::2]).amax(dim=(1, 2, 3)) / PAIR_MAX
    return torch.maximum(alone, together).clamp(min=1e-12)


def _steps(low: Tensor, high: Tensor, zero: int) -> Tensor:
    """Give the least step of each channel with which its range fits around Z."""
    below = -low / zero if zero > 0 else torch.where(low < 0, torch.inf, 0.0)
    above = high / (ACTIVATION_MAX - zero) if zero < ACTIVATION_MAX else torch.where(high > 0, torch.inf, 0.0)
    return torch.maximum(below, above).clamp(min=_LEAST)


def _best_zero(low: Tensor, high: Tensor, weight: Tensor) -> int:
    """Choose the Z with which rounding adds the least to the sums: steps count as much as the weights behind them."""
    power = weight.square().sum(dim=(0, 2, 3))
    noise = [float((_steps(low, high, zero).square() * power).sum()) for zero in range(ACTIVATION_MAX + 1)]
    return noise.index(min(noise))


class Int8Pair(nn.Module):
    """A `ConvPair` in eight bits.

    Args:
        pair: with weights.
        first: its first convolution, in eight bits or in float32.
        between: range of what its second one sees.
    """

    def __init__(self, pair: nn.Module, first: nn.Module, between: Range) -> None:
        super().__init__()
        _, norm, activation, second, last_norm, last_activation = _kind(ConvPair, pair)
        self.first, self.norm, self.activation = first, norm, activation
        self.second = Int8Convolution(_kind(nn.Conv2d, second), between)
        self.last_norm, self.last_activation = last_norm, last_activation

    def quantized(self, x: Tensor) -> Tensor:
        """Give what its first convolution sees, see `Int8Convolution.quantized`."""
        return _kind(Int8Convolution, self.first).quantized(x)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the pair, in float32 out, of what its first convolution sees."""
        x = self.activation(self.norm(self.first(x)))
        out: Tensor = self.last_activation(self.last_norm(self.second(self.second.quantized(x))))
        return out


class Int8UNet(nn.Module):
    """Compute what a `UNet` does, most of it in eight bits.

    Args:
        network: with weights, on the CPU.
        ranges: of its tensors, as `measure_ranges` gives them.

    Raises:
        KeyError, ValueError: a tensor has no range, or one of other channels; or a weight is not finite.
    """

    def __init__(self, network: UNet, ranges: Ranges) -> None:
        super().__init__()
        # Quantized, what is no number would become one, and nobody would notice.
        if not all(bool(weight.isfinite().all()) for weight in network.parameters()):
            raise ValueError("a weight is not finite")
        ups: list[nn.Module] = []
        firsts: list[nn.Module] = [_convolution(network.downs[0], 0)]
        for level, (up, down) in enumerate(zip(network.ups, network.downs[1:], strict=True)):
            joined = ranges[f"joined.{level}"]
            first = Int8Convolution(_convolution(up, 0), joined)
            ups.append(Int8Pair(up, first, ranges[f"up.{level}"]))
            # The level below sees the second half of it, quantized once for both.
            half = len(joined.low) // 2
            own = Range(joined.low[half:], joined.high[half:])
            firsts.append(Int8Convolution(_convolution(down, 0), own, first.zero))
        self.ups = nn.ModuleList(ups)
        self.downs = nn.ModuleList(
            Int8Pair(down, first, ranges[f"down.{level}"])
            for level, (down, first) in enumerate(zip(network.downs, firsts, strict=True))
        )
        self.reduces = nn.ModuleList(
            Int8Convolution(_kind(nn.Conv2d, reduce), ranges[f"reduce.{level}"])
            for level, reduce in enumerate(network.reduces)
        )
        self.head = network.head

    def forward(self, x: Tensor) -> Tensor:
        """Return B x out_channels x H x W, see `UNet.forward`."""
        out: Tensor = self.head(self.features(x))
        return out

    @torch.inference_mode()
    def features(self, x: Tensor) -> Tensor:
        """Return the input of the last convolution, B x widths[0] x H x W, see `UNet.features`."""
        skips: list[Tensor] = []
        downs = [_kind(Int8Pair, down) for down in self.downs]
        for down, below in zip(downs, (*downs[1:], None), strict=True):
            x = down(_halved(skips[-1]) if skips else x)
            if below is not None:
                skips.append(below.quantized(x))
        for skip, reduce, up in zip(skips[::-1], reversed(self.reduces), reversed(self.ups), strict=True):
            pair, narrow = _kind(Int8Pair, up), _kind(Int8Convolution, reduce)
            small = pair.quantized(narrow(narrow.quantized(x)))
            x = pair(torch.cat([F.interpolate(small, scale_factor=2.0, mode="nearest"), skip], dim=1))
        return x


def _convolution(pair: nn.Module, place: int) -> nn.Conv2d:
    return _kind(nn.Conv2d, _kind(ConvPair, pair)[place])


def _kind(kind: type[Kind], module: nn.Module) -> Kind:
    assert isinstance(module, kind)
    return module


def _halved(x: Tensor) -> Tensor:
    """Keep the largest of 2 x 2 pixels: torch's pooling takes no eight-bit numbers."""
    rows = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
    return torch.maximum(rows[..., ::2], rows[..., 1::2])


@contextmanager
def measure_ranges(network: UNet) -> Iterator[Callable[[], dict[str, Range]]]:
    """Watch a network, in float32, while it is run on exams.

    Yields:
        What gives the `Ranges` over all slices seen so far.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    shares = torch.tensor([1 - KEPT, KEPT])

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach().movedim(1, 0).flatten(1)
            # An odd step, which meets every column.
            some = values[:, :: values.shape[1] // _MEASURED | 1].float()
            low, high = some.quantile(shares, dim=1)
            before = seen.get(name, (low, high))
            seen[name] = torch.minimum(low, before[0]), torch.maximum(high, before[1])

        return note

    watched = [(f"down.{level}", _convolution(down, 3)) for level, down in enumerate(network.downs)]
    for level, (reduce, up) in enumerate(zip(network.reduces, network.ups, strict=True)):
        watched += [(f"reduce.{level}", _kind(nn.Conv2d, reduce))]
        watched += [(f"joined.{level}", _convolution(up, 0)), (f"up.{level}", _convolution(up, 3))]
    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in watched]
    try:
        yield lambda: {name: Range(low.tolist(), high.tolist()) for name, (low, high) in seen.items()}
    finally:
        for hook in hooks:
            hook.remove()
