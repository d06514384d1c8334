"""Fill in the slices that a pass left out: between their neighbours, with the detail that the exam has there.

In a small neighbourhood what a network makes is close to a weighted sum of what it sees. The weights are found in the
slices that were made; in those between, they carry over what the exam shows beyond a straight line. Source: the guided
filter with several guides (He, Sun and Tang, IEEE TPAMI 2013), whose weights these are.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

#: Pixels on each side of a neighbourhood.
_RADIUS: Final = 2
#: Variance of a guide (z-scores) below which it says little.
_RIDGE: Final = 0.01
#: Least share of a neighbourhood, so that nothing is divided by zero.
_LEAST: Final = 1e-3
#: Slices at once: their sums stay in a processor's cache.
_CHUNK: Final = 4


def fill_between(
    stack: Tensor, made: Sequence[int], step: int, guides: Tensor | None = None, inside: Tensor | None = None
) -> None:
    """Write the slices between those that were made.

    Args:
        stack: float32, D x R x C; all of it but `made` is to be written.
        made: indices of the slices that are there, ascending.
        step: neighbours further apart than this have nothing between them, and it stays as it is.
        guides: z-scores of the present sequences, S x D x R x C; without them slices lie on straight lines.
        inside: bool, D x R x C: the brain; outside, the guides do not count.
    """
    gaps = [
        (place, first, second) for place, (first, second) in enumerate(pairwise(made)) if 1 < second - first <= step
    ]
    if not gaps:
        return
    for _, first, second in gaps:
        for index in range(first + 1, second):
            torch.lerp(stack[first], stack[second], (index - first) / (second - first), out=stack[index])
    if guides is None or inside is None:
        return
    where = list(made)
    parts = (where[first : first + _CHUNK] for first in range(0, len(where), _CHUNK))
    weights = torch.cat([guide_weights(stack[p], guides[:, p], inside[p]) for p in parts], dim=1)
    for place, first, second in gaps:
        for index in range(first + 1, second):
            share = (index - first) / (second - first)
            detail = guides[:, index] - torch.lerp(guides[:, first], guides[:, second], share)
            known = inside[first] & inside[index] & inside[second]
            carried = (torch.lerp(weights[:, place], weights[:, place + 1], share) * detail).sum(dim=0)
            stack[index] += torch.where(known, carried, 0.0)


def guide_weights(slices: Tensor, guides: Tensor, inside: Tensor) -> Tensor:
    """Fit slices by their guides around each pixel, and average the weights there.

    With C the covariance of the guides around a pixel, e the ridge, I the guides and p the slice, the weights there are
    (C + e)^-1 (mean(I p) - mean(I) mean(p)).

    Args:
        slices: float32, N x R x C.
        guides: S x N x R x C.
        inside: bool, N x R x C: what counts.

    Returns:
        A weight of each guide, S x N x R x C; finite everywhere, 0 far outside.
    """
    mask = inside.to(slices)
    share = 1 / _means(mask).clamp(min=_LEAST)
    count = len(guides)
    masked, target = [guide * mask for guide in guides], slices * mask
    centres, centre = [_means(guide) * share for guide in masked], _means(target) * share
    covariance = {
        (i, j): _means(masked[i] * masked[j]) * share - centres[i] * centres[j] + (_RIDGE if i == j else 0.0)
        for i in range(count)
        for j in range(i + 1)
    }
    moments = [_means(masked[i] * target) * share - centres[i] * centre for i in range(count)]
    solved = _solve(covariance, moments)
    return torch.stack([_means(weight * mask) * share for weight in solved])


def _solve(matrix: dict[tuple[int, int], Tensor], right: list[Tensor]) -> list[Tensor]:
    """Solve small symmetric positive systems, one at each pixel, by their Cholesky factors.

    Args:
        matrix: its lower triangle.
        right: the right-hand side.
    """
    count = len(right)
    lower: dict[tuple[int, int], Tensor] = {}
    forward: list[Tensor] = []
    for i in range(count):
        for j in range(i + 1):
            rest = matrix[i, j]
            for k in range(j):
                rest = rest - lower[i, k] * lower[j, k]
            # Rounding must not make a variance negative.
            lower[i, j] = rest.clamp(min=_RIDGE * _LEAST).sqrt() if i == j else rest / lower[j, j]
        left = right[i]
        for k in range(i):
            left = left - lower[i, k] * forward[k]
        forward.append(left / lower[i, i])
    solved = list(forward)
    for i in reversed(range(count)):
        left = forward[i]
        for k in range(i + 1, count):
            left = left - lower[k, i] * solved[k]
        solved[i] = left / lower[i, i]
    return solved


def _means(planes: Tensor) -> Tensor:
    """Average over the neighbourhood of each pixel, N x R x C; beyond the edge everything is 0."""
    # Sums of shifted planes: on a processor several times faster than torch's pooling.
    width, (rows, columns) = 2 * _RADIUS + 1, planes.shape[1:]
    padded = F.pad(planes, (0, 0, _RADIUS, _RADIUS))
    down = padded[:, :rows].clone()
    for shift in range(1, width):
        down += padded[:, shift : shift + rows]
    padded = F.pad(down, (_RADIUS, _RADIUS))
    across = padded[..., :columns].clone()
    for shift in range(1, width):
        across += padded[..., shift : shift + columns]
    return across.div_(width * width)
