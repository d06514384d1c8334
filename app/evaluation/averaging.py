"""Average what several runs made of the same exams, voxel by voxel.

Source: runs R9 and R10 of the BraSyn 2025 entry, which average the post-processed volumes of two models or views.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from app import __version__
from app.core.constants import Modality
from app.core.errors import UsageError
from app.core.types import VolumeArray
from app.data.file_tree import images_below
from app.data.naming.names import parse_name
from app.data.nifti_reader import Grid, load_volume, read_grid
from app.data.nifti_writer import save_image, to_image
from app.data.origin import SYNTHETIC, made_by_tetrad

log = logging.getLogger(__name__)

Name = tuple[str, Modality]


def average_folders(folders: Sequence[Path], output: Path) -> list[Path]:
    """Write the mean of the images that all folders have by the same name.

    Args:
        folders: outputs of `synthesize`, two or more; the first gives geometry, header and number type.
        output: gets `<subject>-<sequence>.nii.gz`.

    Returns:
        The files written.

    Raises:
        UsageError: a folder does not exist or is the output, one lacks an image of another, or an image is not one
            that Tetrad made, or lies on another grid; nothing is written then.
        VolumeError: an image cannot be read.
        OutputError: an image cannot be written.
    """
    if len({f.resolve() for f in folders}) != len(folders) or len(folders) < 2:
        raise UsageError("average needs two or more folders, each once; give those of two runs of `synthesize`.")
    if any(output.resolve() == f.resolve() for f in folders):
        raise UsageError(f"{output} is one of the folders to average; give another --output.")
    groups = _matched(folders)
    grids = {name: _common_grid(files) for name, files in groups.items()}
    return [_write(name, files, grids[name], output) for name, files in groups.items()]


def _matched(folders: Sequence[Path]) -> dict[Name, list[Path]]:
    """The images of each name, in the folders' order."""
    found = {folder: _images_of(folder) for folder in folders}
    names = sorted(set().union(*found.values()))
    if not names:
        raise UsageError(f"{folders[0]} holds no image named <subject>-<sequence>.nii.gz; give an output folder.")
    for folder, images in found.items():
        if lacking := [name for name in names if name not in images]:
            subject, sequence = lacking[0]
            raise UsageError(f"{folder} has no {sequence} of {subject}, which another folder has; make it there too.")
    return {name: [found[folder][name] for folder in folders] for name in names}


def _images_of(folder: Path) -> Mapping[Name, Path]:
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist.")
    images: dict[Name, Path] = {}
    for path in images_below(folder):
        name = parse_name(path)
        if name is not None and name in images:
            raise UsageError(f"{path} and {images[name]} are both {name[1]} of {name[0]}; keep one.")
        if name is not None:
            images[name] = path
    return images


def _common_grid(files: Sequence[Path]) -> Grid:
    """The grid of the first file, on which all must lie; Tetrad must have made them all."""
    grids = [read_grid(f) for f in files]
    for grid in grids:
        if not made_by_tetrad(grid):
            raise UsageError(f"{grid.path} was not made by Tetrad; only synthesised images are averaged.")
        if not grid.same_as(grids[0]):
            raise UsageError(f"{grid.path} is not on the grid of {grids[0].path} ({grid.difference(grids[0])}).")
    return grids[0]


def _write(name: Name, files: Sequence[Path], grid: Grid, output: Path) -> Path:
    subject, sequence = name
    total: VolumeArray = np.zeros(grid.lps_shape, dtype=np.float32)
    for file in files:
        total += load_volume(file).data
    description = f"{SYNTHETIC} {sequence}, mean of {len(files)} images, tetrad {__version__}"
    path = output / f"{subject}-{sequence}.nii.gz"
    output.mkdir(parents=True, exist_ok=True)
    save_image(to_image(total / np.float32(len(files)), grid, description), path)
    log.info("%s is the mean of %d images.", path, len(files))
    return path
