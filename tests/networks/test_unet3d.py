from __future__ import annotations

import torch

from app.networks.unet3d import Segmenter3d


def test_the_segmenter_gives_classes_of_every_voxel_at_every_level():
    network = Segmenter3d((4, 8, 8))
    assert network.factor == 4
    levels = network.deep(torch.zeros(2, 4, 16, 8, 12))
    assert [tuple(v.shape) for v in levels] == [(2, 4, 16, 8, 12), (2, 4, 8, 4, 6)]
    assert torch.equal(network(torch.zeros(2, 4, 16, 8, 12)), levels[0])
