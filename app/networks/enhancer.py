"""Find enhancing tumour without the T1c, and make it enhance in a synthesised T1c."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from app.core.constants import MODALITIES, Modality
from app.networks.architectures import EnhancerConfig
from app.networks.unet3d import Segmenter3d

#: The only sequence that it works on, and never sees.
TARGET = MODALITIES.index("t1c")
#: Class of the enhancing tumour among `app.core.constants.CLASSES`.
ENHANCING = 3
#: Voxels per axis that are averaged into one of what it looks at.
POOLING = 2
#: Voxels of half the resolution, a side: where the first stage enhances anything so near, its own picture stands; and
#: over which the border of such places is smoothed. A rim with what lies beside it is about a centimetre wide.
_NEAR, _SMOOTH = 7, 5
#: Score of the enhancing tumour that an untrained one expects, in deviations of a T1c over the brain.
_LEVEL = 2.0


class Blinded(nn.Module):
    """Use an enhancer as a segmenter of exams, and hide their T1c from it."""

    def __init__(self, enhancer: Enhancer) -> None:
        super().__init__()
        self.enhancer = enhancer

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, B x 4 x X x Y x Z, of normalized images of that shape in challenge order."""
        shown = self.enhancer.shown(images, tuple(range(len(MODALITIES))))
        return unpooled(self.enhancer.parts(pooled(shown))[0][0])


class Enhancer(nn.Module):
    """Brighten a first-stage T1c where the tumour is expected to enhance.

    A network that is asked for a T1c alone, slice by slice, leaves out enhancement that it is not sure of. This one
    sees the tumour in three dimensions and as a whole, and is taught its parts by name. For each voxel it gives the
    probability of enhancement (p) and the brightness it would then have (e). The result is stage + p * max(e - near,
    0), with the brightest of the first stage nearby (see `nearby`). So it is brighter where the first stage misses
    enhancement, and nowhere darker. Where the first stage shows enhancement or a vessel it stays: that picture is
    sharper.

    It works at half the resolution. There a rim is still two or three voxels wide, and most of a brain fits into one
    window. Its answers are interpolated; finer detail comes from the first stage.

    Our own; the network is that of `Segmenter3d`, with a second head.
    """

    def __init__(self, config: EnhancerConfig) -> None:
        super().__init__()
        self.config = config
        self.segmenter = Segmenter3d(config.widths)
        self.head = nn.Conv3d(config.widths[0], 1, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.constant_(self.head.bias, _LEVEL)  # type: ignore[arg-type]

    def forward(self, stage: Tensor, images: Tensor, target: Tensor, members: tuple[int, ...]) -> Tensor:
        """Return the normalized T1c, float32 B x 1 x X x Y x Z; arguments as `Refiner.forward`.

        Args:
            target: unused, since it is always the T1c.
        """
        logits, level = self.parts(pooled(self.shown(images, members)))
        probability = logits[0].float().softmax(dim=1)[:, ENHANCING : ENHANCING + 1]
        answers = unpooled(torch.cat([probability, F.relu(level.float() - nearby(pooled(stage)))], dim=1))
        return stage + answers[:, :1] * answers[:, 1:]

    def parts(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return logits of the tumour's parts per level, and the brightness of enhancement.

        Args:
            images: normalized, B x 4 x X x Y x Z, from `shown` and then `pooled`.
        """
        features = self.segmenter.features(images.to(self.head.weight.dtype))
        return self.segmenter.logits(features), self.head(features[0])

    def shown(self, images: Tensor, members: tuple[int, ...]) -> Tensor:
        """Keep the sequences that `members` names, but never the T1c; fill others with background."""
        hidden = torch.full_like(images, self.config.background)
        there = [m for m in members if m != TARGET]
        hidden[:, there] = images[:, there]
        return hidden

    @property
    def targets(self) -> tuple[Modality, ...]:
        """Return the sequences that it changes."""
        return (MODALITIES[TARGET],)

    @property
    def factor(self) -> int:
        """Return the divisor of the sides of its inputs."""
        return POOLING * self.segmenter.factor


def pooled(volumes: Tensor) -> Tensor:
    """Average blocks of `POOLING` voxels a side to B x C x X/2 x Y/2 x Z/2."""
    return F.avg_pool3d(volumes, POOLING)


def unpooled(volumes: Tensor) -> Tensor:
    """Interpolate the result of `pooled` to B x C x 2X x 2Y x 2Z."""
    return F.interpolate(volumes, scale_factor=POOLING, mode="trilinear")


def nearby(stage: Tensor) -> Tensor:
    """Find the brightest value within three voxels of each, and smooth.

    Args:
        stage: normalized, at half the resolution, B x 1 x X x Y x Z.
    """
    for axis in range(3):
        window, padding = [1, 1, 1], [0, 0, 0]
        window[axis], padding[axis] = _NEAR, _NEAR // 2
        stage = F.max_pool3d(stage, window, 1, padding)
    return F.avg_pool3d(F.pad(stage, [_SMOOTH // 2] * 6, mode="replicate"), _SMOOTH, 1)
