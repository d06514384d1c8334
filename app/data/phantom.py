"""Make a synthetic four-sequence exam with a tumour: shapes and contrasts, no anatomy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from app.core.constants import MODALITIES, Modality
from app.core.types import VolumeArray
from app.data.nifti_writer import save_image

#: Brightness of each tissue per sequence, loosely as on 3 T scans.
_CONTRAST: Final[dict[Modality, dict[str, float]]] = {
    "t1n": {"csf": 160, "grey": 400, "white": 560, "oedema": 350, "core": 260, "rim": 390},
    "t1c": {"csf": 170, "grey": 430, "white": 590, "oedema": 370, "core": 290, "rim": 1000},
    "t2w": {"csf": 1000, "grey": 520, "white": 360, "oedema": 760, "core": 860, "rim": 600},
    "t2f": {"csf": 110, "grey": 430, "white": 350, "oedema": 760, "core": 480, "rim": 560},
}
_LABELS: Final = {"core": 1, "oedema": 2, "rim": 3}


@dataclass(frozen=True)
class Phantom:
    """Hold one synthetic subject.

    Attributes:
        volumes: float32 per sequence, axes L, P, S, background 0.
        labels: uint8, same shape: 1 necrotic core, 2 oedema, 3 enhancing rim.
        affine: 4 x 4, 1 mm isotropic.
    """

    volumes: dict[Modality, VolumeArray]
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]


def make_phantom(shape: tuple[int, int, int] = (144, 176, 144), seed: int = 0) -> Phantom:
    """Make an ellipsoid of folded grey and white matter with ventricles and one tumour.

    Args:
        shape: voxels per axis (left, posterior, superior), each at least 32.
        seed: the same seed gives the same voxels.
    """
    random = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n, dtype=np.float32) for n in shape], indexing="ij"))
    folds = _smooth_noise(random, shape, 5.0)
    radius = np.sqrt(((grid / 0.86) ** 2).sum(axis=0)) + 0.02 * folds
    brain = radius < 1
    tissue = {name: np.zeros(shape, dtype=np.float32) for name in _CONTRAST["t1n"]}
    tissue["white"][brain] = 1
    _put(tissue, "grey", brain & (radius > 0.78 + 0.07 * folds))
    _put(tissue, "csf", brain & (radius > 0.965 + 0.01 * folds))
    ventricles = np.sqrt(((np.abs(grid[0]) - 0.14) / 0.09) ** 2 + (grid[1] / 0.4) ** 2 + ((grid[2] - 0.05) / 0.2) ** 2)
    _put(tissue, "csf", ventricles < 1)
    side = random.choice([-1.0, 1.0])
    centre = np.array([0.42 * side, random.uniform(-0.3, 0.3), random.uniform(0.0, 0.3)], dtype=np.float32)
    distance = np.sqrt(((grid - centre[:, None, None, None]) ** 2).sum(axis=0)) + 0.05 * folds
    labels = np.zeros(shape, dtype=np.uint8)
    for name, reach in (("oedema", 0.38), ("rim", 0.22), ("core", 0.15)):
        region = brain & (distance < reach)
        _put(tissue, name, region)
        labels[region] = _LABELS[name]
    softened = {name: _smooth(share, 0.7) for name, share in tissue.items()}
    volumes = {}
    for modality in MODALITIES:
        image = sum(_CONTRAST[modality][name] * share for name, share in softened.items())
        image = image * (1 + 0.04 * _smooth_noise(random, shape, 1.5)) * (1 + 0.05 * _smooth_noise(random, shape, 30.0))
        image = image + 12 * random.standard_normal(shape, dtype=np.float32)
        volumes[modality] = np.where(brain, np.maximum(image, 1), 0).astype(np.float32)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0])
    affine[:3, 3] = (shape[0] - 1) / 2, (shape[1] - 1) / 2, -(shape[2] - 1) / 2
    return Phantom(volumes, labels, affine)


def write_phantom(phantom: Phantom, folder: Path, subject: str, leave_out: tuple[Modality, ...] = ()) -> None:
    """Write `<folder>/<subject>/<subject>-<sequence>.nii.gz` (int16) and `-seg.nii.gz`."""
    place = folder / subject
    place.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, NDArray[Any]] = {"seg": phantom.labels}
    for modality in MODALITIES:
        if modality not in leave_out:
            arrays[modality] = np.rint(phantom.volumes[modality]).astype(np.int16)
    for name, array in arrays.items():
        image = nib.Nifti1Image(array, phantom.affine)
        image.set_sform(phantom.affine, code=1)
        image.set_qform(phantom.affine, code=1)
        image.header.set_xyzt_units("mm")
        save_image(image, place / f"{subject}-{name}.nii.gz")


def _put(tissue: dict[str, VolumeArray], name: str, where: NDArray[np.bool_]) -> None:
    for share in tissue.values():
        share[where] = 0
    tissue[name][where] = 1


def _smooth(volume: VolumeArray, sigma: float) -> VolumeArray:
    image = sitk.SmoothingRecursiveGaussian(sitk.GetImageFromArray(volume), sigma)
    return np.asarray(sitk.GetArrayFromImage(image), dtype=np.float32)


def _smooth_noise(random: np.random.Generator, shape: tuple[int, int, int], sigma: float) -> VolumeArray:
    """Draw Gaussian noise blurred by `sigma` voxels, of mean 0 and deviation 1."""
    noise = _smooth(random.standard_normal(shape, dtype=np.float32), sigma)
    return np.asarray((noise - noise.mean()) / noise.std(), dtype=np.float32)
