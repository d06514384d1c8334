"""Each equation on a case that is worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from app.networks.ds3net import losses as L
from app.networks.ds3net.generator import reflected


def test_equation_1():
    scores = torch.full((1, 1, 2, 2), 0.25, requires_grad=True)
    brain = torch.ones(1, 1, 4, 4)
    brain[..., 0, 0] = 0
    difficulty = L.difficulty_map(scores, brain)
    assert difficulty[0, 0, 0, 0].item() == pytest.approx(0.2)
    assert difficulty[0, 0, 1:].tolist() == [[0.75] * 4] * 3
    assert not difficulty.requires_grad


def test_equations_2_and_5():
    made, real = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.5])
    assert L.pixel_loss(made, real, torch.tensor([0.2, 1.0])).item() == pytest.approx((0.2 + 0.5) / 2)


def test_the_map_is_averaged_to_a_layers_size():
    difficulty = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    assert L.resized_difficulty(difficulty, (1, 1)).item() == 0.25


def test_the_map_of_the_padded_image_lies_on_it():
    """Layer 0 is the image padded by 3."""
    image = torch.arange(80.0).view(1, 1, 8, 10)
    assert torch.equal(L.resized_difficulty(image, (14, 16)), reflected(image, 3))


def test_equation_3():
    # Two places, orthogonal: each is like its own and unlike the other.
    queries = torch.eye(2)[None]
    loss = L.contrast_loss(queries, queries, torch.tensor([[1.0, 0.5]]))
    one = -math.log(math.exp(1 / 0.07) / (math.exp(1 / 0.07) + 1))
    assert loss.item() == pytest.approx((one + 0.5 * one) / 2, abs=1e-6)
    swapped = L.contrast_loss(queries, queries.flip(1), torch.ones(1, 2))
    assert swapped.item() == pytest.approx(1 / 0.07, rel=1e-5)


def test_equation_6():
    teacher = {4: torch.ones(1, 2, 4, 4, requires_grad=True), 8: torch.zeros(1, 1, 2, 2)}
    student = {4: torch.zeros(1, 2, 4, 4, requires_grad=True), 8: torch.full((1, 1, 2, 2), 2.0)}
    loss = L.feature_loss(teacher, student, torch.full((1, 1, 8, 8), 0.5), (4, 8))
    assert loss.item() == pytest.approx((0.5 * 1 + 0.5 * 2) / 2)
    loss.backward()
    assert teacher[4].grad is None
    assert student[4].grad is not None


def test_least_squares():
    assert L.fooling_loss(torch.tensor([0.0, 1.0])).item() == 0.5
    assert L.discriminator_loss(torch.tensor([1.0]), torch.tensor([0.0])).item() == 1


def test_the_students_share_falls_to_nothing():
    assert [L.student_share(t) for t in (0, 0.25, 1, 2)] == [1, 0.75, 0, 0]
