"""Build the group average of each sequence, with tissue probabilities, and cut the prior of a slice out of it.

Every brain is brought to one grid by its bounding box: moved and stretched along the three axes, not turned or bent.
Voxels of lesions are left out of the average, so that it shows healthy brain wherever somebody's is. Subjects come one
after another: what is held are sums.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.core.types import MaskArray
from app.inference.simulation.tissue import tissue_probabilities
from app.networks.architectures import CgSamrPrior
from app.preprocessing.normalization import BACKGROUND

_KEY: Final = "tetrad_atlas"
_ARRAYS: Final = ("images", "brain", "tissue")
#: Share of the subjects that have brain at a voxel, from which on it is the atlas's brain.
_BRAIN: Final = 0.5
#: What 1 is in whole numbers.
_LEVELS: Final = 255


@dataclass(frozen=True)
class Frame:
    """State the grid on which simulated exams lie, and the brain's place on it.

    Attributes:
        shape: voxels along left, posterior, superior.
        affine: 4 x 4 in rows, from index to nibabel's millimetres.
        start: where the brain's box begins.
    """

    shape: tuple[int, int, int]
    affine: tuple[tuple[float, ...], ...]
    start: tuple[int, int, int]

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The affine as an array."""
        return np.array(self.affine, dtype=np.float64)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel edge lengths in millimetres."""
        x, y, z = np.linalg.norm(self.matrix[:3, :3], axis=0)
        return float(x), float(y), float(z)


@dataclass(frozen=True)
class Atlas:
    """Hold what an average subject shows, on the box of its brain.

    Attributes:
        images: float16, sequences x L x P x S, in [-1, 1]; -1 where nobody has healthy brain.
        brain: float16, share of the subjects with brain at a voxel.
        tissue: float16, 3 x L x P x S: probabilities of white matter, grey matter and fluid.
        brightness: per sequence the mean over subjects of what 1 means in the files' units.
        subjects: how many there are.
        frame: the first subject's.
        extent: voxels of the frame that the box covers.
    """

    images: Tensor
    brain: Tensor
    tissue: Tensor
    brightness: tuple[float, ...]
    subjects: int
    frame: Frame
    extent: tuple[int, int, int]

    @property
    def brain_mask(self) -> MaskArray:
        """The average brain on the frame, bool."""
        mask = np.zeros(self.frame.shape, dtype=bool)
        inside = (_on_box(self.brain[None].float(), self.extent)[0] >= _BRAIN).numpy()
        end = [min(s + n, whole) for s, n, whole in zip(self.frame.start, inside.shape, self.frame.shape, strict=True)]
        place = tuple(slice(s, e) for s, e in zip(self.frame.start, end, strict=True))
        mask[place] = inside[tuple(slice(0, e - s) for s, e in zip(self.frame.start, end, strict=True))]
        return mask

    def prior(
        self, kind: CgSamrPrior, box: Sequence[int], index: int, own: NDArray[np.uint8] | None = None
    ) -> NDArray[np.float32]:
        """Cut the anatomical prior of an axial slice, float32 channels x rows x columns.

        Args:
            kind: `atlas` gives of every sequence the slice below, this one and the one above; `subject` these, and
                three tissue probabilities at the same slices, from -1 to 1; `tissue` these from 0 to 1 at this slice;
                `none` nothing.
            box: extent of the subject's brain, to which the atlas is stretched.
            index: of the slice in that box.
            own: tissue of the subject's own brain (`app.inference.simulation.own_tissue`). The atlas's stands where
                it is not known, or not given.
        """
        if kind == "none":
            return np.empty((0, *box[:2]), np.float32)
        if kind == "tissue":
            return self._tissue(box, [index], own)
        numbers = [index - 1, index, index + 1]
        planes = self._stretched(_joined(self._plane(self.images, n, box[2]) for n in numbers), box)
        return planes if kind == "atlas" else np.concatenate([planes, 2 * self._tissue(box, numbers, own) - 1])

    def tissue_on(self, box: Sequence[int], own: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Stretch the tissue probabilities to a brain's box, from 0 to 255, 3 x L x P x S.

        Args:
            box: extent of the subject's brain.
            own: as `prior`.
        """
        levels = _levels(_on_box(self.tissue.float(), box), "tissue").numpy()
        return levels if own is None else np.where(own.any(axis=0), own, levels)

    def _tissue(self, box: Sequence[int], numbers: Sequence[int], own: NDArray[np.uint8] | None) -> NDArray[np.float32]:
        """The probabilities at some slices, tissue by tissue: the subject's own where they are known."""
        average = self._stretched(_joined(self._plane(self.tissue, n, box[2]) for n in numbers), box)
        if own is None:
            return average
        inside = np.clip(numbers, 0, box[2] - 1)
        told = np.moveaxis(own[..., inside], -1, 1).astype(np.float32) / _LEVELS
        is_known = np.broadcast_to(told.sum(axis=0, keepdims=True) > 0.5, told.shape)
        return np.where(is_known, told, average.reshape(told.shape)).reshape(average.shape)

    @staticmethod
    def _stretched(planes: Tensor, box: Sequence[int]) -> NDArray[np.float32]:
        size = list(box[:2])
        return F.interpolate(planes[None], size=size, mode="bilinear", align_corners=False)[0].numpy()

    @staticmethod
    def _plane(volumes: Tensor, index: int, depth: int) -> Tensor:
        """One slice of each volume, between two where need be; float32 channels x rows x columns."""
        count = volumes.shape[-1]
        at = min(max((index + 0.5) * count / depth - 0.5, 0.0), count - 1.0)
        low = int(at)
        high = min(low + 1, count - 1)
        return torch.lerp(volumes[..., low].float(), volumes[..., high].float(), at - low)

    def on_voxels(self, edge: float) -> Atlas:
        """Average it over larger voxels, for a smaller file.

        Args:
            edge: of a voxel in millimetres; where it is none, or smaller than the voxels are, nothing changes.
        """
        extents = zip(self.extent, self.frame.spacing, self.brain.shape, strict=True)
        x, y, z = (min(now, math.ceil(count * own / edge - 1e-3)) if edge > 0 else now for count, own, now in extents)
        whole = (self.images, self.brain[None], self.tissue)
        images, brain, tissue = (F.adaptive_avg_pool3d(volume.float(), (x, y, z)).half() for volume in whole)
        return replace(self, images=images, brain=brain[0], tissue=tissue)

    def to_bytes(self) -> bytes:
        """Encode as safetensors of 256 levels each; `read_atlas` is the inverse."""
        from safetensors.torch import save

        form = {
            "subjects": self.subjects,
            "brightness": self.brightness,
            "frame": asdict(self.frame),
            "extent": self.extent,
        }
        tensors = {name: _levels(getattr(self, name), name) for name in _ARRAYS}
        return save(tensors, metadata={_KEY: json.dumps(form)})


def _joined(planes: Iterable[Tensor]) -> Tensor:
    """Channels of each volume at some slices, volume by volume."""
    return torch.stack(list(planes), dim=1).flatten(0, 1)


def _on_box(volumes: Tensor, box: Sequence[int]) -> Tensor:
    """Stretch channels x L x P x S to a box."""
    return F.interpolate(volumes[None], size=list(box), mode="trilinear", align_corners=False)[0]


def _levels(values: Tensor, name: str) -> Tensor:
    """Round to whole numbers from 0 to 255: images from [-1, 1], shares from [0, 1]."""
    shares = (values.float() + 1) / 2 if name == "images" else values.float()
    return (shares.clamp(0, 1) * _LEVELS).round().to(torch.uint8).contiguous()


def _values(levels: Tensor, name: str) -> Tensor:
    """Invert `_levels`."""
    if levels.dtype != torch.uint8:
        raise ValueError("its voxels are no levels")
    shares = levels.float() / _LEVELS
    return (shares * 2 - 1 if name == "images" else shares).half()


def read_atlas(path: Path) -> Atlas:
    """Read an atlas.

    Raises:
        UsageError: it is missing, damaged or something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as stream:
            form: dict[str, Any] = json.loads((stream.metadata() or {})[_KEY])
            arrays = {name: _values(stream.get_tensor(name), name) for name in _ARRAYS}
        where = form["frame"]
        frame = frame_of(where["shape"], np.array(where["affine"]), where["start"])
        x, y, z = form.get("extent", arrays["brain"].shape)
        return Atlas(
            **arrays, brightness=tuple(form["brightness"]), subjects=form["subjects"], frame=frame, extent=(x, y, z)
        )
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is no atlas ({type(error).__name__}); make one with `python -m app atlas`.") from None


class AtlasBuilder:
    """Average subjects as they come; the box of the first one's brain is the grid.

    Args:
        sequences: how many there are.
    """

    def __init__(self, sequences: int = len(MODALITIES)) -> None:
        self._sequences, self._count = sequences, 0
        self._frame: Frame | None = None

    def add(
        self,
        images: NDArray[np.floating[Any]],
        brain: MaskArray,
        labels: NDArray[np.uint8],
        brightness: Sequence[float],
        frame: Frame,
    ) -> None:
        """Add a subject, on the box of its brain.

        Args:
            images: sequences x L x P x S, in [-1, 1].
            brain, labels: L x P x S; where a label is above 0, the images do not count.
            brightness: per sequence what 1 means in the file's units.
            frame: where the box lies; that of the first subject is the atlas's.
        """
        if self._frame is None:
            self._frame, self._shape = frame, brain.shape
            self._sums = torch.zeros(self._sequences, *brain.shape)
            self._weights, self._brains = torch.zeros(brain.shape), torch.zeros(brain.shape)
            self._brightness = np.zeros(self._sequences)
        inside = torch.from_numpy(brain.astype(np.float32))
        healthy = inside * torch.from_numpy((labels == 0).astype(np.float32))
        weight = self._on_grid(healthy)
        for number, image in enumerate(images):
            values = torch.from_numpy(image.astype(np.float32))
            self._sums[number] += self._on_grid(values * healthy)
        self._weights += weight
        self._brains += self._on_grid(inside)
        self._brightness += np.asarray(brightness, dtype=np.float64)
        self._count += 1

    def build(self, t1n: int = MODALITIES.index("t1n"), t2w: int = MODALITIES.index("t2w")) -> Atlas:
        """Finish the average, and fit the tissues to it.

        Args:
            t1n, t2w: numbers of the sequences by which tissues are told apart.

        Raises:
            UsageError: there is no subject.
        """
        if self._frame is None:
            raise UsageError("no subject could be used for an atlas; give complete subjects with segmentations.")
        brain = self._brains / self._count
        filled = _filled(self._sums, self._weights)
        images = torch.where(self._weights > 1e-3, self._sums / self._weights.clamp(min=1e-3), filled)
        images = torch.where(brain > 1e-3, images, torch.full_like(images, BACKGROUND)).clamp(-1, 1)
        x, y, z = self._shape
        both = images[[t1n, t2w]].numpy()
        tissue = torch.from_numpy(tissue_probabilities(both, (brain >= _BRAIN).numpy())) * brain
        return Atlas(
            images.half(), brain.half(), tissue.half(), tuple((self._brightness / self._count).tolist()), self._count,
            self._frame, (x, y, z),
        )  # fmt: skip

    def _on_grid(self, volume: Tensor) -> Tensor:
        if volume.shape == self._shape:
            return volume
        size = list(self._shape)
        return F.interpolate(volume[None, None], size=size, mode="trilinear", align_corners=False)[0, 0]


def _filled(sums: Tensor, weights: Tensor) -> Tensor:
    """What stands where everybody has a lesion: the mean of the healthy brain around, or the whole brain's."""
    margin = min(4, (min(weights.shape) - 1) // 2)
    near, values = (F.avg_pool3d(v, 2 * margin + 1, 1, margin)[0] for v in (weights[None, None], sums[None]))
    mean = sums.flatten(1).sum(1) / weights.sum().clamp(min=1e-6)
    return torch.where(near > 1e-4, values / near.clamp(min=1e-4), mean[:, None, None, None])


def frame_of(shape: Sequence[int], affine: NDArray[np.float64], start: Sequence[int]) -> Frame:
    """Give a frame of plain numbers.

    Args:
        shape, start: of three numbers.
        affine: 4 x 4.
    """
    (x, y, z), (a, b, c) = (tuple(int(v) for v in values) for values in (shape, start))
    return Frame((x, y, z), tuple(tuple(float(v) for v in row) for row in affine), (a, b, c))


def plain_frame(shape: Sequence[int], start: Sequence[int]) -> Frame:
    """Give a frame of 1 mm voxels along left, posterior and superior, its origin in the middle.

    Args:
        shape, start: of three numbers.
    """
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = [(shape[0] - 1) / 2, (shape[1] - 1) / 2, -(shape[2] - 1) / 2]
    return frame_of(shape, affine, start)
