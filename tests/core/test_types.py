from __future__ import annotations

from typing import get_args

import numpy as np

from app.core import types
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import Intensity, denormalize, normalize


def _number_type(alias: object) -> type:
    return get_args(get_args(alias)[1])[0]


def test_arrays_have_the_types_that_their_names_promise(phantom):
    volume = phantom.volumes["t1n"]
    normalized = normalize(volume, Intensity(300.0, 100.0), -1.0)
    brain = vote_foreground({"t1n": volume})
    assert normalized.dtype == denormalize(normalized, Intensity(300.0, 100.0), brain).dtype
    assert normalized.dtype == np.dtype(_number_type(types.VolumeArray)) == np.dtype(_number_type(types.SliceStack))
    assert brain.dtype == np.dtype(_number_type(types.MaskArray))
    assert phantom.affine.dtype == np.dtype(_number_type(types.Affine))
