from __future__ import annotations

import torch
from torch import nn

from app.networks.tissnet.backbone import ConvPair25d, Decoder25d, DualBranch25d, Encoder25d, UNet25d, factors

WIDTHS = (4, 4, 6, 6, 8)


def test_the_two_finest_levels_are_flat():
    kernels = [
        {m.kernel_size for m in level.modules() if isinstance(m, nn.Conv3d)} for level in Encoder25d(3, WIDTHS).levels
    ]
    assert kernels == [{(3, 3, 1)}] * 2 + [{(3, 3, 3)}] * 3


def test_levels_halve_within_slices_first():
    shapes = [tuple(x.shape[2:]) for x in Encoder25d(3, WIDTHS)(torch.zeros(1, 3, 32, 48, 8))]
    assert shapes == [(32, 48, 8), (16, 24, 8), (8, 12, 8), (4, 6, 4), (2, 3, 2)]
    assert factors(5) == (16, 16, 4)


def test_two_decoders_share_one_encoder():
    network = DualBranch25d(3, (1, 2), WIDTHS)
    first, second = network(torch.randn(1, 3, 32, 32, 8))
    assert first.shape == (1, 1, 32, 32, 8)
    assert second.shape == (1, 2, 32, 32, 8)
    second.sum().backward()
    assert all(p.grad is not None for p in network.encoder.parameters())
    assert all(p.grad is None for p in network.first.parameters())


def test_skips_reach_the_answer():
    torch.manual_seed(0)
    encoder, decoder = Encoder25d(1, WIDTHS), Decoder25d(WIDTHS, 1)
    levels = [x.detach().requires_grad_() for x in encoder(torch.randn(1, 1, 32, 32, 8))]
    decoder(levels).square().sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in levels)


def test_a_single_branch_gives_probabilities():
    answer = UNet25d(1, 3, WIDTHS)(torch.randn(2, 1, 32, 32, 8))
    assert answer.shape == (2, 3, 32, 32, 8)
    assert ((answer >= 0) & (answer <= 1)).all()


def test_a_flat_pair_mixes_no_slices():
    torch.manual_seed(0)
    pair = nn.Sequential(*[m for m in ConvPair25d(1, 2, flat=True) if isinstance(m, nn.Conv3d)])
    image = torch.zeros(1, 1, 8, 8, 5)
    image[..., 2] = 1
    assert (pair(image).abs().sum(dim=(0, 1, 2, 3)) > 0).tolist() == [False, False, True, False, False]


def test_a_case_changes_the_answer_but_one_network_of_one_case_has_no_code():
    torch.manual_seed(0)
    network, image = UNet25d(2, 1, WIDTHS, cases=3), torch.randn(1, 2, 32, 32, 8)
    answers = [network(image, torch.tensor([case])) for case in (0, 1)]
    assert not torch.equal(*answers)
    assert not any("codes" in name for name in UNet25d(2, 1, WIDTHS).state_dict())
