from __future__ import annotations

import numpy as np
import pytest

from app.data.phantom import make_phantom
from app.preprocessing.skull import shows_skull

BRAINS = {m: v for m, v in make_phantom((64, 72, 60), seed=2).volumes.items() if m != "t2f"}
RADIUS = np.sqrt(sum(g**2 for g in np.meshgrid(*[np.linspace(-1, 1, n) for n in (64, 72, 60)], indexing="ij")))


def _heads(scalp: float, bone: float) -> dict[str, np.ndarray]:
    """The brains, shrunk by a dark skull and a scalp in air that is 0."""
    inside = {m: np.where(RADIUS < 0.8, v, 0) for m, v in BRAINS.items()}
    shell = scalp * ((RADIUS > 0.88) & (RADIUS < 0.97)) + bone * ((RADIUS >= 0.8) & (RADIUS <= 0.88))
    return {m: (v + shell).astype(np.float32) for m, v in inside.items()}


@pytest.mark.parametrize("sequences", [("t1n", "t1c", "t2w"), ("t1n",), ("t2w",)])
class TestSkull:
    @pytest.mark.parametrize("scalp,bone", [(900, 40), (600, 0)])
    def test_a_head_in_blackened_air_shows_one(self, sequences, scalp, bone):
        heads = _heads(scalp, bone)
        assert shows_skull([heads[m] for m in sequences], (1, 1, 1))

    def test_a_stripped_brain_shows_none(self, sequences):
        assert not shows_skull([BRAINS[m] for m in sequences], (1, 1, 1))


def test_depths_are_millimetres():
    heads = list(_heads(900, 40).values())
    assert shows_skull(heads, (1.2, 1.2, 3))
    assert not shows_skull(heads, (9, 9, 9))


@pytest.mark.parametrize("spacing", [(1, 1, 1), (500, 500, 500), (0.3, 0.3, 0.3)])
def test_one_bright_voxel_is_no_head(spacing):
    volume = np.zeros((32, 32, 32), np.float32)
    volume[9, 9, 9] = 5
    assert not shows_skull([volume], spacing)
