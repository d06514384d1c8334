"""Each equation on a case that is worked out by hand."""

from __future__ import annotations

import pytest
import torch

from app.networks.tissnet import losses
from app.networks.tissnet.backbone import UNet25d
from app.networks.tissnet.model import TissNetOutput


def _row(*values: float) -> torch.Tensor:
    """A volume of one row, B = K = 1."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1, 1, 1)


def test_dice():
    # 2 * 1.5 + 1 over 2.5 + 2 + 1.
    assert losses.overlap_loss(_row(1, 0.5, 1, 0), _row(1, 1, 0, 0)).item() == pytest.approx(1 - 4 / 5.5)
    assert losses.overlap_loss(_row(0, 0), _row(0, 0)).item() == 0


def test_false_alarms_in_a_patch_without_tumour_cost_where_another_has_some():
    answer = torch.cat([_row(1, 0), _row(0.5, 0.5)]).requires_grad_()
    loss = losses.overlap_loss(answer, torch.cat([_row(1, 0), _row(0, 0)]))
    assert loss.item() == pytest.approx(1 - 3 / 4)
    loss.backward()
    # Of the loss 1 - (2 * 1 + 1) / (total + 1) by each false share.
    assert answer.grad is not None
    assert answer.grad[1].flatten().tolist() == pytest.approx([3 / 16, 3 / 16])


def test_the_l1_terms_of_equations_1_and_4():
    terms = losses.l1_losses(_row(0.5, -0.5, 1, 0), _row(0, 0, 0, 0), mask=_row(0, 1, 1, 0))
    assert terms["l1_global"].item() == pytest.approx(2 / 4)
    assert terms["l1_tumour"].item() == pytest.approx(1.5 / 4)


def test_equation_2():
    assert losses.fooling_loss(torch.tensor([1.0, 0.0])).item() == pytest.approx(0.5)


def test_equations_3_and_11():
    loss = losses.discriminator_loss(made=torch.tensor([0.5, 0.5]), real=torch.tensor([0.0, 1.0]))
    assert loss.item() == pytest.approx(0.25 + 0.5)


def test_the_mask_is_the_tumours_box():
    truth = torch.zeros(2, 3, 6, 5, 4)
    truth[0, 0, 1, 2, 3] = 1
    truth[0, 2, 3, 1, 2] = 1
    mask = losses.tumour_mask(truth)
    expected = torch.zeros(2, 1, 6, 5, 4)
    expected[0, 0, 1:4, 1:3, 2:4] = 1
    assert torch.equal(mask, expected)


def test_equation_5_moves_the_image_and_not_the_frozen_network():
    torch.manual_seed(0)
    judge = UNet25d(1, 1, (4, 4, 6, 6, 8)).requires_grad_(False)
    image = torch.randn(1, 1, 32, 32, 8, requires_grad=True)
    losses.perceptibility_loss(judge(image), torch.ones(1, 1, 32, 32, 8)).backward()
    assert image.grad.abs().sum() > 0
    assert all(p.grad is None for p in judge.parameters())


def test_the_truth_of_the_errors_has_no_gradient():
    coarse = _row(0.9, 0.9, 0.1, 0.1).requires_grad_()
    wrong = losses.error_truth(coarse, _row(1, 0, 1, 0))
    assert wrong.flatten().tolist() == [0, 1, 1, 0]
    assert not wrong.requires_grad


def test_equation_8():
    assert losses.consistency_loss(_row(1, 0), _row(0.5, 0)).item() == pytest.approx(0.125)


def test_equation_9():
    output = TissNetOutput(_row(0, 0), coarse=_row(1, 0), fine=_row(1, 1), error=_row(0, 1))
    terms = losses.segmentor_losses(output, _row(1, 1))
    # Fine and error answers are right; so is what they give together.
    assert {name: value.item() for name, value in terms.items()} == {"fine": 0, "error": 0, "consistency": 0}


def test_equation_10():
    terms = {"l1_global": torch.tensor(0.5), "fine": torch.tensor(2.0)}
    total = losses.total_loss(terms, {"l1_global": 50.0, "l1_tumour": 200.0, "fine": 25.0})
    assert total.item() == 50 * 0.5 + 25 * 2
