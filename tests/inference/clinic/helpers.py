"""Heads as scanned, small enough for tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from app.data.phantom import make_phantom
from app.preprocessing.registration import RigidAlignment

#: An alignment by which nobody moved.
STILL = RigidAlignment(sitk.Euler3DTransform(), before=-0.8, after=-0.8, spread=0.0, mirrored=-0.6)
#: About 1,100 ml of brain in a skull.
SHAPE = (120, 140, 110)


@cache
def _volumes() -> dict[str, np.ndarray]:
    return make_phantom(SHAPE, seed=2).volumes


def write_heads(folder: Path, lacks: str = "t2f", spacing: float = 4.0) -> dict[str, Path]:
    """Three thick-slice sequences of one head with skull, each on a grid of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    volumes = _volumes()
    brain = volumes["t1n"] > 0
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    radius = np.sqrt(sum(a**2 for a in axes))
    scalp = (radius > 0.9) & (radius < 0.98)
    files = {}
    for number, (modality, volume) in enumerate(volumes.items()):
        if modality == lacks:
            continue
        # Noise in the air, bright scalp, a mark on one side.
        random = np.random.default_rng(number)
        head = np.where(brain, volume, np.abs(random.normal(0, 2, SHAPE))).astype(np.float32)
        head[scalp] = 150 + 40 * number
        head[30:42, 60:75, 50:60] *= 1.5
        step = round(spacing) + number % 2
        slices = head[..., : SHAPE[2] // step * step].reshape(*SHAPE[:2], -1, step).mean(axis=-1)
        affine = np.diag([-1.2, -1.2, 1.2 * step, 1.0])
        affine[:3, 3] = [72, 84, 1.2 * (step - 1) / 2 - 66]
        image = nib.Nifti1Image(np.rint(slices).astype(np.int16), affine)
        image.set_sform(affine, 1)
        image.set_qform(affine, 1)
        files[modality] = folder / f"{folder.name}-{modality}.nii"
        nib.save(image, files[modality])
    return files


def write_mask(path: Path, beside: Path) -> Path:
    """The brain of the phantom on the grid of one of its sequences."""
    image = nib.load(beside)
    step = round(float(image.header.get_zooms()[2]) / 1.2)
    brain = _volumes()["t1n"] > 0
    shares = brain[..., : SHAPE[2] // step * step].reshape(*SHAPE[:2], -1, step).mean(axis=-1)
    nib.save(nib.Nifti1Image((shares > 0.5).astype(np.uint8), image.affine), path)
    return path
