"""Infuse the bottleneck of a generator with target, view and intensity by a transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.networks.architectures import Activation, Position


def sinusoidal_code(position: Tensor, channels: int) -> Tensor:
    """Sine and cosine halves of n * 10000^(-k / (channels / 2 - 1)).

    Args:
        position: (B,) numbers n, whole or not.

    Returns:
        B x channels, float32.
    """
    half = channels // 2
    rates = 10000.0 ** (-torch.arange(half, dtype=torch.float32, device=position.device) / (half - 1))
    angles = position.float()[:, None] * rates[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class CodeEmbedding(nn.Module):
    """Embed a number (an index, or an intensity): sinusoidal code, Linear, SiLU, Linear."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.layers = nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, channels))

    def forward(self, number: Tensor) -> Tensor:
        """(B,) to B x channels."""
        weight = self.layers[0].weight
        assert isinstance(weight, Tensor)
        out: Tensor = self.layers(sinusoidal_code(number, self.channels).to(weight.dtype))
        return out


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if query.device.type == "cpu" and query.requires_grad:
        # On a processor the gradient in bfloat16 is five times slower than in float32.
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(query.float(), key.float(), value.float()).to(query)
    return F.scaled_dot_product_attention(query, key, value)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one packed projection, laid out as torch's own."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(channels, 3 * channels)
        self.out_proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """B x tokens x channels, same out."""
        batch, tokens, channels = x.shape
        query, key, value = (
            part.reshape(batch, tokens, self.heads, channels // self.heads).transpose(1, 2)
            for part in self.in_proj(x).chunk(3, dim=-1)
        )
        mixed = _attend(query, key, value)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).reshape(batch, tokens, channels))
        return out


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP (four times as wide), each with a residual."""

    def __init__(self, channels: int, heads: int, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attention = SelfAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels),
            nn.GELU() if activation == "gelu" else nn.SiLU(),
            nn.Dropout(dropout),
            nn.Linear(4 * channels, channels),
            nn.Dropout(dropout),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """B x tokens x channels, same out."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Infuser(nn.Module):
    """Add position, sequence, view and intensity codes to the map, and transform it.

    Args:
        channels: width of the map, a multiple of `heads`.
        position: `learned` (a table for `table_size` tokens a side, interpolated for other maps) or `sinusoidal`.
        view_code, intensity_code: whether those codes exist.
    """

    def __init__(
        self,
        channels: int,
        *,
        heads: int = 16,
        depth: int = 4,
        activation: Activation = "gelu",
        position: Position = "sinusoidal",
        table_size: int = 15,
        view_code: bool = True,
        intensity_code: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(channels, channels, 1)
        self.table_size = table_size
        self.position_table = (
            nn.Parameter(torch.zeros(1, table_size * table_size, channels)) if position == "learned" else None
        )
        self.modality_code = CodeEmbedding(channels)
        self.view_code = CodeEmbedding(channels) if view_code else None
        self.intensity_code = CodeEmbedding(channels) if intensity_code else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(TransformerBlock(channels, heads, activation, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor, target: Tensor, view: Tensor | None = None, intensity: Tensor | None = None) -> Tensor:
        """Transform a map B x C x h x w to one of the same shape.

        Args:
            target: (B,) index of the sequence to make.
            view: (B,) index of the view; needed with a view code, ignored without.
            intensity: (B,) the target's median in the brain, in the scale that the network was trained with; likewise.
        """
        batch, channels, height, width = x.shape
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = tokens + self._positions(height, width, channels).to(tokens)
        code = self.modality_code(target)
        if self.view_code is not None:
            if view is None:
                raise ValueError("this network was trained with a view code; say which view each slice is from")
            code = code + self.view_code(view)
        if self.intensity_code is not None:
            if intensity is None:
                raise ValueError("this network was trained with an intensity code; give the target's median")
            # Scaled as far as the steps of a diffusion schedule, the range that such codes resolve well.
            code = code + self.intensity_code(1000.0 * intensity)
        tokens = self.dropout(tokens + code[:, None])
        for block in self.blocks:
            tokens = block(tokens)
        out: Tensor = self.norm(tokens).transpose(1, 2).reshape(batch, channels, height, width)
        return out

    def _positions(self, height: int, width: int, channels: int) -> Tensor:
        """1 x (height * width) x channels, row by row."""
        if self.position_table is None:
            device = self.patch.weight.device
            rows = sinusoidal_code(torch.arange(height, device=device), channels // 2)
            columns = sinusoidal_code(torch.arange(width, device=device), channels // 2)
            grid = torch.cat(
                [rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)],
                dim=-1,
            )
            return grid.reshape(1, height * width, channels)
        if (height, width) == (self.table_size, self.table_size):
            return self.position_table
        table = self.position_table.reshape(1, self.table_size, self.table_size, channels).permute(0, 3, 1, 2)
        resized = F.interpolate(table.float(), size=(height, width), mode="bicubic", align_corners=False)
        return resized.flatten(2).transpose(1, 2)
