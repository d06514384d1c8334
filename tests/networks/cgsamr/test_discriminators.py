from __future__ import annotations

import torch

from app.networks.cgsamr.discriminators import LabelwiseDiscriminators, region_masks


def test_regions_cover_each_pixel_once():
    brain = torch.tensor([0.0, 1.0, 1.0, 0.0]).reshape(1, 1, 2, 2)
    lesion = torch.tensor([0.0, 0.0, 2.0, 1.0]).reshape(1, 1, 2, 2)
    masks = region_masks(brain, lesion)
    assert masks[0].flatten(1).tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]]
    assert (masks.sum(1) == 1).all()


def test_six_discriminators_of_three_regions_at_two_scales():
    network = LabelwiseDiscriminators(3, 2)
    assert len(network.networks) == 6
    sizes, seen = [], []
    for one in network.networks:
        one.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    brain = torch.zeros(1, 1, 64, 64)
    brain[..., 16:48, 16:48] = 1
    lesion = torch.zeros_like(brain)
    lesion[..., 24:32, 24:32] = 1
    answers = network(torch.ones(1, 1, 64, 64), torch.ones(1, 2, 64, 64), region_masks(brain, lesion))
    sizes = [x.shape[-1] for x in seen]
    assert sizes == [64, 32] * 3
    # What is seen at full scale is the region alone, in the condition as in the exam.
    areas = [float(x.mean()) * 64 * 64 for x in seen[::2]]
    assert areas == [64 * 64 - 32 * 32, 32 * 32 - 64, 64]
    assert float(seen[5].sum()) * 4 == float(seen[4].sum())
    assert all(len(layers) == 5 for layers in answers)
    assert all(layers[-1].shape[1] == 1 for layers in answers)


def test_the_plain_baseline_sees_all_at_one_scale():
    network = LabelwiseDiscriminators(3, 2, labelwise=False, scales=1)
    assert len(network.networks) == 1
    assert len(network(torch.ones(1, 1, 32, 32), torch.ones(1, 2, 32, 32), torch.ones(1, 3, 32, 32))) == 1
