"""Random variation of slices and patches, on the device that trains.

Geometry moves a slice's sequences, brain and labels together. Tumours are shared among subjects, so that what a tumour
does is learnt apart from the brain around it. Brightness varies per sequence and only in what the network is shown,
never in what it must make: that teaches it scanners that the training set lacks.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from app.core.constants import CLASSES, MODALITIES, VIEWS
from app.training.data.drawn_alike import Random
from app.training.data.patches import Patches
from app.training.data.sections import AugmentationRecipe, RecolouringRecipe, SliceAugmentation
from app.training.data.slices import Batch

#: Nodes per side of the bias field; the brain spans two or three of its waves.
_BIAS_NODES = 4
#: Nodes per side of the field that bends slices.
_BEND_NODES = 6
#: What is left of a faded tumour's contrast, at least and at most.
_LEFT = (-0.5, 1.0)
#: How much lighter or darker each part of a recoloured tumour gets at most, in normalized units.
_SHADE = 0.6


def vary_geometry(batch: Batch, recipe: SliceAugmentation, random: Random, background: float) -> Batch:
    """Flip, turn, resize, stretch and bend each slice; shifts are the sampler's.

    Source: elastic deformation of a coarse grid's random displacements (Ronneberger et al., MICCAI 2015, section 3.1).

    Args:
        background: fills what comes in from outside.
    """
    count = len(batch)
    flips = random.random(count) < recipe.flip
    angles = np.radians(random.uniform(-recipe.rotate, recipe.rotate, count))
    zooms = 1 + random.uniform(-recipe.zoom, recipe.zoom, count)
    images, brain, labels = batch.images, batch.brain, batch.labels
    if flips.any() and VIEWS[batch.view] != "sagittal":
        # Left and right are the rows of axial and coronal slices.
        where = torch.from_numpy(flips).to(images.device)
        images = torch.where(where[:, None, None, None], images.flip(2), images)
        brain = torch.where(where[:, None, None, None], brain.flip(2), brain)
        labels = torch.where(where[:, None, None], labels.flip(1), labels)
    if max(recipe.rotate, recipe.zoom, recipe.stretch, recipe.bend) > 0:
        grid = _grid(angles, zooms, images)
        if recipe.stretch > 0:
            ratios = np.exp(random.uniform(-recipe.stretch, recipe.stretch, count) / 2).astype(np.float32)
            grid = grid * torch.from_numpy(np.stack([ratios, 1 / ratios], axis=1)).to(grid)[:, None, None]
        if recipe.bend > 0:
            grid = grid + _bend(recipe.bend, random, images)
        nearest = torch.cat([brain, labels[:, None].to(brain)], dim=1)
        nearest = F.grid_sample(nearest, grid, mode="nearest", align_corners=False)
        # Cubic: linear resampling would blur what the network sees and what it must make.
        images = F.grid_sample(images - background, grid, mode="bicubic", align_corners=False) + background
        brain, labels = nearest[:, :1], nearest[:, 1].round().long()
        images = torch.where(brain > 0, images, torch.full_like(images, background))
    return replace(batch, images=images, brain=brain, labels=labels)


def fade_tumours(batch: Batch, share: float, random: Random) -> Tensor:
    """Let tumours stand out less from the brain around, not at all, or inversely.

    Returns the batch's images, same shape.

    Each sequence for itself, so that a network learns to believe the one that shows the tumour against those that do
    not. Only the contrast of areas changes, a few pixels wide; texture stays. Without tumour nothing changes.

    Args:
        share: probability of each image; what is left of its contrast is between -0.5 and 1.
    """
    images, count = batch.images, batch.images.shape[:2]
    left = np.where(random.random(count) < share, random.uniform(*_LEFT, count), 1.0).astype(np.float32)
    tumour = (batch.labels[:, None] > 0).to(images)
    healthy = batch.brain * (1 - tumour)
    # Deep in a large tumour there is no healthy brain nearby: there, the slice's own mean decides.
    mean = (images * healthy).sum((2, 3), keepdim=True) / healthy.sum((2, 3), keepdim=True).clamp(min=1)
    around = (_around(images * healthy) + 1e-3 * mean) / (_around(healthy) + 1e-3)
    inside = _nearby(images * tumour) / _nearby(tumour).clamp(min=1e-6)
    weight = F.avg_pool2d(tumour, 3, 1, 1) * batch.brain
    lost = 1 - torch.from_numpy(left).to(images)[:, :, None, None]
    low, high = _limits(batch)
    faded = (images - weight * lost * (inside - around)).clamp(low, high)
    return torch.where((weight > 0) & (lost > 0), faded, images)


def recolour_slices(batch: Batch, recipe: RecolouringRecipe, random: Random, background: float) -> Tensor:
    """Give the tumours of a share of T1n and T2-FLAIR any shade.

    Returns the batch's images, same shape.

    A network learns from it which sequence to believe.

    Args:
        background: what is outside the brain, and inside where a scan does not reach; it stays.
    """
    recoloured = np.zeros(batch.images.shape[:2], dtype=bool)
    for modality, share in (("t1n", recipe.recolour_t1n), ("t2f", recipe.recolour_t2f)):
        recoloured[:, MODALITIES.index(modality)] = random.random(len(batch)) < share
    where = torch.from_numpy(recoloured).to(batch.images.device)[:, :, None, None]
    inside = (batch.brain > 0) & (batch.images != background)
    return torch.where(where & inside, recolour_tumours(batch, random), batch.images)


def recolour_tumours(batch: Batch, random: Random) -> Tensor:
    """Fade all tumours, then make each part lighter or darker by chance.

    Returns the batch's images, same shape.
    """
    faded = fade_tumours(batch, 1.0, random)
    parts = torch.stack([(batch.labels == part).to(faded) for part in range(1, CLASSES)], dim=1)
    shades = random.uniform(-_SHADE, _SHADE, (*faded.shape[:2], parts.shape[1])).astype(np.float32)
    edges = F.avg_pool2d(parts, 3, 1, 1) * batch.brain
    recoloured = faded + torch.einsum("ijk,ikhw->ijhw", torch.from_numpy(shades).to(faded), edges)
    low, high = _limits(batch)
    return torch.where(edges.sum(1, keepdim=True) > 0, recoloured.clamp(low, high), faded)


def recolour_patches(patches: Patches, recipe: RecolouringRecipe, random: np.random.Generator) -> Tensor:
    """Give the tumours of a share of T1n and T2-FLAIR patches another shade.

    Returns the patches' images, same shape.

    Each part loses some of its contrast to the healthy brain of its patch, or gets it inversely, and gets lighter or
    darker by chance. Patches without tumour or without healthy brain stay as they are.
    """
    images, edges = patches.images.clone(), 3
    for i, labels in enumerate(patches.labels):
        healthy = (patches.brain[i, 0] > 0) & (labels == 0)
        parts = [labels == part for part in range(1, CLASSES) if (labels == part).any()]
        for modality, share in (("t1n", recipe.recolour_t1n), ("t2f", recipe.recolour_t2f)):
            image = images[i, MODALITIES.index(modality)]
            if random.random() >= share or not parts or not healthy.any():
                continue
            around = image[healthy].mean()
            means = [image[part].mean() for part in parts]
            for part, mean in zip(parts, means, strict=True):
                lost, shade = 1 - random.uniform(*_LEFT), random.uniform(-_SHADE, _SHADE)
                weight = F.avg_pool3d(part[None, None].to(image), edges, 1, edges // 2)[0, 0] * patches.brain[i, 0]
                image += weight * (lost * (around - mean) + shade)
    low, high = _limits(patches)
    return torch.where(images != patches.images, images.clamp(low, high), images)


def _resliced(image: Tensor, axis: int, extent: float) -> Tensor:
    """Means over slices of about `extent` voxels along the axis: fewer voxels there."""
    sides = list(image.shape)
    sides[axis] = max(1, round(sides[axis] / extent))
    return F.interpolate(image[None, None], size=sides, mode="area")[0, 0]


def _nearby(images: Tensor) -> Tensor:
    """Means over 9 x 9 pixels."""
    return F.avg_pool2d(F.avg_pool2d(images, (9, 1), 1, (4, 0)), (1, 9), 1, (0, 4))


def _around(images: Tensor) -> Tensor:
    """Means over about 40 x 40 pixels, from blocks of 8 x 8."""
    blocks = F.avg_pool2d(F.avg_pool2d(images, 8), 5, 1, 2)
    return F.interpolate(blocks, size=images.shape[2:], mode="bilinear")


def vary_patches(
    patches: Patches, recipe: AugmentationRecipe, random: np.random.Generator, background: float
) -> Patches:
    """Flip left and right, turn about a random axis and resize each patch.

    Args:
        background: fills what comes in from outside.
    """
    count = len(patches)
    flips = random.random(count) < recipe.flip
    turned = {}
    axes, angles = random.integers(0, 3, count), np.radians(random.uniform(-recipe.rotate, recipe.rotate, count))
    zooms = 1 + random.uniform(-recipe.zoom, recipe.zoom, count)
    where = torch.from_numpy(flips).to(patches.images.device)
    for name in ("images", "brain", "extra_channels"):
        values = getattr(patches, name)
        turned[name] = torch.where(where[:, None, None, None, None], values.flip(2), values) if flips.any() else values
    labels = torch.where(where[:, None, None, None], patches.labels.flip(1), patches.labels)
    if recipe.rotate > 0 or recipe.zoom > 0:
        grid = _volume_grid(axes, angles, zooms, turned["images"])
        nearest = torch.cat([turned["brain"], labels[:, None].to(turned["brain"])], dim=1)
        nearest = F.grid_sample(nearest, grid, mode="nearest", align_corners=False)
        turned["brain"], labels = nearest[:, :1], nearest[:, 1].round().long()
        for name in ("images", "extra_channels"):
            values = turned[name]
            if values.shape[1]:
                values = F.grid_sample(values - background, grid, mode="bilinear", align_corners=False) + background
                turned[name] = torch.where(turned["brain"] > 0, values, torch.full_like(values, background))
    return replace(patches, labels=labels, **turned)


def vary_intensities(batch: Batch | Patches, recipe: AugmentationRecipe, random: Random, background: float) -> Tensor:
    """Vary brightness as other scanners do; background stays as it is.

    Returns the batch's images, same shape.
    """
    images = batch.images

    def draw(reach: float) -> Tensor:
        return _per_image(random, (-reach, reach), images)

    varied = images
    if recipe.gamma > 0 or recipe.bias > 0:
        log_gamma = draw(recipe.gamma)
        gain = 1 + _bias_field(random, images, recipe.bias) if recipe.bias > 0 else 1.0
        varied = _bent(batch, log_gamma, gain)
    varied = varied * (1 + draw(recipe.contrast)) + draw(recipe.brightness)
    if recipe.thick > 1:
        varied = _thickened(varied, recipe.thick, random)
    if recipe.noise > 0:
        seed = int(random.integers(2**31))
        generator = torch.Generator(images.device).manual_seed(seed)
        grain = torch.randn(images.shape, generator=generator, device=images.device)
        varied = varied + draw(recipe.noise).abs() * grain
    return torch.where((batch.brain > 0) & (images != background), varied, images)


def _bent(batch: Batch | Patches, log_gamma: Tensor, gain: Tensor | float = 1.0) -> Tensor:
    """The batch's images after a change of gamma, and then of gain, of voxels mapped to [0, 1] by their limits."""
    low, high = _limits(batch)
    return low + ((batch.images - low) / (high - low)).clamp(0, 1) ** log_gamma.exp() * gain * (high - low)


def _limits(batch: Batch | Patches) -> tuple[Tensor, Tensor]:
    """Lowest and highest score of each image's volume, of shape (count, sequences, 1, 1) or with one axis more."""
    scale = batch.scale.reshape(*batch.scale.shape, *[1] * (batch.images.dim() - 2))
    return scale[:, :, 0], scale[:, :, 1]


def _per_image(random: Random, limits: tuple[float, float], images: Tensor) -> Tensor:
    """One value between the limits for each image, which broadcasts over its pixels."""
    shape = images.shape[:2]
    values = random.uniform(*limits, shape).astype(np.float32)
    return torch.from_numpy(values).to(images.device).reshape(*shape, *[1] * (images.dim() - 2))


def _thickened(images: Tensor, thickest: float, random: Random) -> Tensor:
    """Half of the images as if acquired in slices of 1 to `thickest` voxels along one axis, resampled to one voxel.

    The axis is one of three: a slice that lies in the plane of the acquisition shows nothing of it.
    """
    shape = tuple(images.shape[:2])
    chosen = random.random(shape).ravel() < 0.5
    axes, extents = random.integers(0, 3, shape).ravel(), random.uniform(1, thickest, shape).ravel()
    flat = list(images.flatten(0, 1).unbind())
    for i in np.flatnonzero(chosen & (axes < images.dim() - 2)):
        coarse = _resliced(flat[i], int(axes[i]), float(extents[i]))
        mode = "bilinear" if coarse.dim() == 2 else "trilinear"
        flat[i] = F.interpolate(coarse[None, None], size=flat[i].shape, mode=mode)[0, 0]
    return torch.stack(flat).reshape(images.shape)


def _bias_field(random: Random, like: Tensor, reach: float) -> Tensor:
    axes = like.dim() - 2
    nodes = random.uniform(-reach, reach, (*like.shape[:2], *[_BIAS_NODES] * axes)).astype(np.float32)
    mode = "bicubic" if axes == 2 else "trilinear"
    return F.interpolate(torch.from_numpy(nodes).to(like.device), size=like.shape[2:], mode=mode)


def _grid(angles: np.ndarray, zooms: np.ndarray, like: Tensor) -> Tensor:
    """Sampling grid of rotations about the centre and zooms, in pixels of equal size."""
    height, width = like.shape[2:]
    rows = []
    for angle, zoom in zip(angles, zooms, strict=True):
        c, s = math.cos(angle) / zoom, math.sin(angle) / zoom
        # Coordinates run from -1 to 1 on both axes, so turning mixes them by the sides' ratio.
        rows.append([[c, -s * height / width, 0.0], [s * width / height, c, 0.0]])
    theta = torch.tensor(rows, dtype=like.dtype, device=like.device)
    return F.affine_grid(theta, list(like.shape), align_corners=False)


def _bend(reach: float, random: Random, like: Tensor) -> Tensor:
    """Smooth displacements of a sampling grid, up to about `reach` pixels each way."""
    nodes = random.uniform(-reach, reach, (len(like), 2, _BEND_NODES, _BEND_NODES)).astype(np.float32)
    field = F.interpolate(torch.from_numpy(nodes).to(like), size=like.shape[2:], mode="bicubic")
    # Coordinates run from -1 to 1, the column's first.
    return 2 * field.movedim(1, -1) / torch.tensor([like.shape[3], like.shape[2]]).to(like)


def _volume_grid(axes: np.ndarray, angles: np.ndarray, zooms: np.ndarray, like: Tensor) -> Tensor:
    """Sampling grid of rotations about one axis each and zooms, in voxels of equal size."""
    sides = np.array(like.shape[2:], dtype=np.float64)
    rows = []
    for axis, angle, zoom in zip(axes, angles, zooms, strict=True):
        c, s = math.cos(angle) / zoom, math.sin(angle) / zoom
        turn = np.eye(3) / zoom
        a, b = (i for i in range(3) if i != axis)
        turn[a, a], turn[a, b], turn[b, a], turn[b, b] = c, -s, s, c
        # Coordinates run from -1 to 1 on every axis, in torch's order from the last axis to the first.
        turn = (turn * sides[None] / sides[:, None])[::-1, ::-1]
        rows.append(np.hstack([turn, np.zeros((3, 1))]))
    theta = torch.from_numpy(np.array(rows, dtype=np.float32)).to(like.device)
    return F.affine_grid(theta, list(like.shape), align_corners=False)
