from __future__ import annotations

import torch

from app.networks.tissnet.discriminators import PatchDiscriminator3d


def test_one_score_sees_70_by_70_by_16_voxels():
    network = PatchDiscriminator3d(2, width=2).double()
    for module in network.modules():
        # A norm sees the whole volume; the field is of the convolutions.
        if hasattr(module, "weight") and module.__class__.__name__ == "InstanceNorm3d":
            module.forward = lambda x: x
    source = torch.randn(1, 1, 128, 128, 32, dtype=torch.float64, requires_grad=True)
    scores = network(source, torch.randn(1, 1, 128, 128, 32, dtype=torch.float64))
    middle = [n // 2 for n in scores.shape[2:]]
    scores[0, 0, middle[0], middle[1], middle[2]].backward()
    seen = source.grad[0, 0] != 0
    extents = [int(seen.any(dim=tuple(a for a in range(3) if a != axis)).sum()) for axis in range(3)]
    assert extents == [70, 70, 16]


def test_it_judges_the_target_beside_its_sources():
    torch.manual_seed(0)
    network = PatchDiscriminator3d(4, width=2)
    sources, target = torch.randn(2, 3, 64, 64, 8), torch.randn(2, 1, 64, 64, 8)
    assert network(sources, target).shape[:2] == (2, 1)
    assert not torch.allclose(network(sources, target), network(sources.flip(1), target))
