"""Find the brain in a head with skull, by the networks of deepbet.

Source: Fisch et al., deepbet: fast brain extraction of T1-weighted MRI using convolutional neural networks, 2024 (MIT).
Its package holds two networks as TorchScript: one finds the brain's box, one the brain in it. They are read from the
installed package; its own code, and what that needs, are not.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.core.errors import UsageError
from app.core.types import MaskArray, VolumeArray

#: Voxels per axis that the networks see, and share of the box that is added around it.
_BOX_SIDE: Final = 128
_BRAIN_SIDE: Final = 256
_MARGIN: Final = 0.1
#: Mean share of brain in a plane that belongs to the box, and in a voxel that is brain.
_IN_BOX: Final = 0.02
_IN_BRAIN: Final = 0.5
#: Percentiles that become 0 and 1, and the scale that the networks learnt on.
_LOW, _HIGH = 0.005, 0.995
_STD: Final = 0.226
_MEAN: Final = 0.449
_NETWORKS: Final = ("bbox_model.pt", "model.pt")


def find_brain(volume: VolumeArray) -> MaskArray:
    """Find the brain in a T1-weighted head.

    Args:
        volume: float32, axes nearest to left, posterior, superior, about 1 mm.

    Raises:
        UsageError: deepbet is not installed.
        ValueError: there is no brain.
    """
    box_network, brain_network = _networks()
    # The networks learnt on right, anterior, superior.
    turned = np.ascontiguousarray(volume[::-1, ::-1])
    head = torch.from_numpy(turned)[None, None]
    small = F.interpolate(head, (_BOX_SIDE,) * 3, mode="nearest-exact")
    low, high = (float(small.quantile(q)) for q in (_LOW, _HIGH))
    if not high > low:
        raise ValueError("it is empty")
    with torch.inference_mode():
        coarse = box_network(_scaled(small, low, high))[0, 1].numpy() > _IN_BRAIN
        box = _box_of(_largest(coarse), volume.shape)
        window = F.interpolate(head[(slice(None), slice(None), *box)], (_BRAIN_SIDE,) * 3, mode="nearest-exact")
        shares = brain_network(_scaled(window, low, high))[:, 1:2]
        sides = [side.stop - side.start for side in box]
        fine = F.interpolate(shares, sides, mode="nearest-exact")[0, 0].numpy() > _IN_BRAIN
    brain = np.zeros(turned.shape, dtype=bool)
    brain[box] = _filled(_largest(fine))
    return np.ascontiguousarray(brain[::-1, ::-1])


def is_available() -> bool:
    """Tell whether deepbet's networks are installed."""
    try:
        return len(_places()) == len(_NETWORKS)
    except PackageNotFoundError:
        return False


def _places() -> list[Path]:
    """Find the networks' files in the installed package, in order.

    Raises:
        PackageNotFoundError: the package is not installed.
    """
    known = {Path(str(entry)).name: Path(str(entry.locate())) for entry in files("deepbet") or []}
    return [known[name] for name in _NETWORKS if name in known and known[name].is_file()]


@lru_cache(maxsize=1)
def _networks() -> tuple[nn.Module, nn.Module]:
    if not is_available():
        raise UsageError(
            "the brain cannot be found without the package deepbet; run `pip install --no-deps deepbet`, or give a "
            "mask with --mask."
        )
    # TorchScript, which torch itself runs: nothing is unpickled.
    box, brain = (torch.jit.load(str(place), map_location="cpu").eval() for place in _places())  # type: ignore[no-untyped-call]
    return box, brain


def _scaled(head: Tensor, low: float, high: float) -> Tensor:
    shares = ((head - low) / (high - low)).clamp(0, 1)
    return (shares - shares.mean()) / shares.std() * _STD + _MEAN


def _largest(mask: MaskArray) -> MaskArray:
    """Leave the largest piece.

    Raises:
        ValueError: there is none.
    """
    from scipy import ndimage

    labels, count = ndimage.label(mask, structure=np.ones((3, 3, 3)))
    if not count:
        raise ValueError("no brain is found in it")
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == sizes.argmax())


def _filled(mask: MaskArray) -> MaskArray:
    from scipy import ndimage

    return np.asarray(ndimage.binary_fill_holes(mask))


def _box_of(coarse: MaskArray, shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Place the box around a coarse mask, with a margin, in voxels of the volume."""
    box = []
    for axis, length in enumerate(shape):
        share = coarse.mean(axis=tuple(a for a in range(3) if a != axis))
        planes = np.flatnonzero(share > _IN_BOX)
        if not planes.size:
            raise ValueError("no brain is found in it")
        scale = length / coarse.shape[axis]
        centre = round(scale * (planes[-1] + 1 + planes[0]) / 2)
        side = round(scale * (planes[-1] + 1 - planes[0]) * (1 + 2 * _MARGIN))
        box.append(slice(max(0, int(centre - side / 2)), min(length, int(centre + side / 2))))
    return tuple(box)
