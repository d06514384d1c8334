from __future__ import annotations

import math

import pytest
import torch

from app.networks.cgsamr import losses as L


def _map(*values: float) -> torch.Tensor:
    return torch.tensor(values).reshape(1, 1, 1, -1)


class TestConfidence:
    """Equation 1."""

    def test_by_hand(self):
        loss = L.confidence_loss(_map(0.5, -1.0), _map(0.5, 0.25), _map(0.0, 0.0), 0.1)
        assert loss.item() == pytest.approx((0.5 * 0.5 - 0.1 * math.log(0.5) + 0.25 - 0.1 * math.log(0.25)) / 2)

    def test_the_best_confidence_is_lambda_over_the_error(self):
        confidence = torch.linspace(0.01, 0.99, 99)
        values = [L.confidence_loss(_map(0.4), _map(float(c)), _map(0.0), 0.1).item() for c in confidence]
        assert confidence[values.index(min(values))].item() == pytest.approx(0.1 / 0.4, abs=0.01)

    def test_a_confidence_of_0_is_dear_and_finite(self):
        assert 1 < L.confidence_loss(_map(0.0), _map(0.0), _map(0.0), 0.1).item() < 2

    def test_lambda(self):
        assert (L.confidence_weight(False), L.confidence_weight(True)) == (0.1, 0.03)

    def test_half_scale_is_the_mean_of_four(self):
        assert L.half_scale(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])).item() == 3.0


class TestAdversary:
    """Equation 2."""

    def test_the_discriminators_by_hand(self):
        made, real = [[_map(9.0), _map(0.0, 0.0)]], [[_map(9.0), _map(math.log(3.0), 0.0)]]
        expected = -math.log(0.5) - (math.log(0.75) + math.log(0.5)) / 2
        assert L.discriminator_loss(made, real).item() == pytest.approx(expected)

    def test_sums_over_discriminators(self):
        one = [[_map(0.3)]]
        assert L.discriminator_loss(one * 6, one * 6).item() == pytest.approx(6 * L.discriminator_loss(one, one).item())

    def test_the_generator_by_hand(self):
        assert L.adversarial_loss([[_map(5.0), _map(math.log(3.0))], [_map(0.0)]]).item() == pytest.approx(
            -math.log(0.75) - math.log(0.5)
        )


class TestFeatures:
    """Equation 3."""

    def test_by_hand(self):
        made, real = [[_map(1.0, 3.0), _map(2.0)]], [[_map(0.0, 1.0), _map(0.0)]]
        assert L.feature_matching_loss(made, real).item() == pytest.approx((1 + 4) / 2 + 4)

    def test_what_is_real_gets_no_gradient(self):
        made, real = _map(1.0).requires_grad_(), _map(0.0).requires_grad_()
        L.feature_matching_loss([[made]], [[real]]).backward()
        assert made.grad is not None
        assert real.grad is None


class TestShape:
    """Equations 4 and 5."""

    def test_by_hand(self):
        truth, answer = _map(1.0, 1.0, 0.0), _map(0.5, 1.0, 0.5)
        assert L.generalised_dice_loss(truth, answer).item() == pytest.approx(1 - 2 * 1.5 / 4, abs=1e-5)

    def test_labels_count_alike(self):
        truth = torch.cat([_map(1.0, 1.0, 1.0, 0.0), _map(0.0, 0.0, 0.0, 1.0)], dim=1)
        answer = truth * torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
        assert L.generalised_dice_loss(truth, answer).item() == pytest.approx(0.5, abs=1e-5)

    def test_nothing_found_where_nothing_is_costs_nothing(self):
        assert L.generalised_dice_loss(_map(0.0), _map(0.0)).item() == pytest.approx(0.0)

    def test_both_exams_count(self):
        truth, half = _map(1.0, 0.0), _map(0.5, 0.0)
        both = L.shape_consistency_loss(truth, truth, half)
        assert both.item() == pytest.approx(1 - 2 * 0.5 / 1.5, abs=1e-5)


def test_reconstruction():
    """Equations 7 and 9."""
    assert L.reconstruction_loss(_map(1.0, 0.0), _map(0.5, -1.0)).item() == pytest.approx(0.75)


def test_darkness_by_hand():
    image = torch.tensor([-1.0, -0.95, -0.5, -1.0]).reshape(1, 1, 2, 2)
    brain = torch.tensor([1.0, 1.0, 1.0, 0.0]).reshape(1, 1, 2, 2)
    assert L.darkness_loss(image, brain).item() == pytest.approx((0.2 + 0.15) / 3)
    assert L.darkness_loss(image, torch.zeros_like(brain)).item() == 0


def test_tissue_levels_by_hand():
    images = torch.tensor([[0.0, 1.0, 0.5, -1.0]])
    tissue = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    assert L.tissue_levels(images, tissue).tolist() == [pytest.approx([0.5, -0.25, 0.0])]


def test_tissue_loss_by_hand():
    image = torch.tensor([0.0, 0.4, 0.9, 0.9]).reshape(1, 1, 2, 2)
    tissue = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]).reshape(1, 3, 2, 2)
    # Means 0.2 and 0.9, and a tissue that is not there.
    levels = torch.tensor([[0.5, 0.85, -1.0]])
    assert L.tissue_loss(image, tissue, levels).item() == pytest.approx((0.3 - 0.1) / 3)
