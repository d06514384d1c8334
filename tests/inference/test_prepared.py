"""A case in model space."""

from __future__ import annotations

import numpy as np
import pytest

from app.inference.prepared import Prepared
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import Normalization, measure


def _prepared(phantom, background: float | None) -> Prepared:
    arrays = {m: phantom.volumes[m].astype(np.float32) for m in ("t1c", "t2w")}
    scheme = Normalization("volume", background=background)
    return Prepared(
        arrays, vote_foreground(arrays), {m: measure(a, m, scheme) for m, a in arrays.items()}, {}, background
    )


@pytest.mark.parametrize(("background", "padding"), [(-1.0, -1.0), (None, 0.0)])
def test_padding_is_the_background_or_zero(phantom, background, padding):
    assert _prepared(phantom, background).padding == padding


def test_background_voxels_get_its_value(phantom):
    prepared = _prepared(phantom, -2.0)
    for modality, volume in prepared.normalized.items():
        assert volume.dtype == np.float32
        assert (volume[prepared.arrays[modality] <= 0] == -2).all()
