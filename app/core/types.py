"""Name array types by the meaning of their axes.

The axes of a volume are always Left, Posterior, Superior (see `app.core.constants.ORIENTATION`).
"""

from __future__ import annotations

from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

#: float32, axes (left, posterior, superior).
VolumeArray: TypeAlias = NDArray[np.float32]
#: bool, axes (left, posterior, superior).
MaskArray: TypeAlias = NDArray[np.bool_]
#: float32 or bool, axes (left, posterior, superior).
AnyVolume = TypeVar("AnyVolume", bound=NDArray[Any])
#: float32, axes (slice, row, column).
SliceStack: TypeAlias = NDArray[np.float32]
#: float64, 4 x 4, voxel index to millimetres in NIfTI's R, A, S world.
Affine: TypeAlias = NDArray[np.float64]
