from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from app.preprocessing.similarity import ssim_map
from app.training import losses as L

SCALE = torch.tensor([[0.0, 1.0]]).repeat(2, 1)


def _pair():
    random = np.random.default_rng(0)
    truth, made = (torch.from_numpy(random.random((2, 1, 40, 44))).float() for _ in range(2))
    brain = torch.zeros(2, 1, 40, 44)
    brain[..., 5:35, 6:40] = 1
    return made, truth, brain


def test_only_brain_pixels_count():
    values = torch.full((1, 1, 8, 8), 100.0)
    brain = torch.zeros_like(values)
    values[..., 2:4, 2:4], brain[..., 2:4, 2:4] = 3, 1
    assert float(L.brain_mean(values, brain)) == 3
    assert float(L.l1_loss(values, torch.zeros_like(values), brain)) == 3
    assert float(L.brain_mean(values, torch.zeros_like(brain))) == 0


def test_background_counts_where_all_pixels_do():
    prediction, truth = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    prediction[0, 0, 0, 0], truth[1, 0, 1, 1], truth[1, 0, 0, 1] = 3, 2, -1
    assert float(L.mae_loss(prediction, truth)) == pytest.approx((3 + 2 + 1) / 8)
    brain = torch.zeros(2, 1, 2, 2)
    brain[0] = 1
    assert float(L.l1_loss(prediction, truth, brain)) == pytest.approx(3 / 4)


def test_a_region_counts_as_often_as_its_weight_says():
    brain = torch.ones(1, 1, 1, 4)
    region = torch.tensor([1.0, 0, 0, 0]).reshape(1, 1, 1, 4)
    wrong_inside, wrong_outside = region, region.flip(3)

    def cost(prediction, weight=6.0):
        truth = torch.zeros_like(brain)
        return float(L.l1_loss(prediction, truth, brain) + weight * L.region_loss(prediction, truth, brain, region))

    assert cost(wrong_inside) == pytest.approx(7 * cost(wrong_outside))
    assert cost(wrong_outside) == pytest.approx(0.25)
    assert float(L.region_loss(wrong_inside, brain * 0, brain, brain * 0)) == 0


class TestSsim:
    def test_it_is_the_metrics_own_in_two_dimensions(self):
        made, truth, brain = _pair()
        maps = [
            ssim_map(*((v * brain)[i, 0].numpy().astype(float) for v in (made, truth)), extent=1.0)[brain[i, 0] > 0]
            for i in range(2)
        ]
        ours = L.ssim_loss(made, truth, brain, SCALE)
        assert float(ours) == pytest.approx(1 - np.concatenate(maps).mean(), abs=1e-4)

    def test_a_perfect_prediction_costs_nothing(self):
        truth = torch.randn(2, 1, 32, 32)
        scale = torch.tensor([[-3.0, 5.0]]).repeat(2, 1)
        assert float(L.ssim_loss(truth, truth, torch.ones_like(truth), scale)) == pytest.approx(0, abs=1e-5)

    def test_it_is_computed_in_float32_under_autocast(self):
        made, truth, brain = _pair()
        near = truth + 0.02 * made
        plain = L.ssim_loss(near, truth, brain, SCALE)
        with torch.autocast("cpu", torch.bfloat16):
            automatic = L.ssim_loss(near.bfloat16().float(), truth, brain, SCALE)
            exact = L.ssim_loss(near, truth, brain, SCALE)
        assert torch.equal(exact, plain)
        assert float(automatic) == pytest.approx(float(plain), abs=2e-3)

    def test_dual_counts_healthy_and_tumour_as_halves(self):
        made, truth, brain = _pair()
        tumour = torch.zeros_like(brain)
        tumour[..., 10:14, 10:14] = 1
        # A pixel in the background is no tumour, whatever the labels say.
        tumour[..., 0, 0] = 1
        pixels = L.ssim_pixels(made, truth, brain, SCALE)
        healthy = pixels[(brain > 0) & (tumour == 0)].mean()
        ill = pixels[(brain > 0) & (tumour > 0)].mean()
        dual = L.ssim_loss(made, truth, brain, SCALE, tumour)
        assert float(dual) == pytest.approx(float(1 - (healthy + ill) / 2), abs=1e-5)

    def test_dual_without_tumour_is_the_whole(self):
        made, truth, brain = _pair()
        none = torch.zeros_like(brain)
        whole = L.ssim_loss(made, truth, brain, SCALE)
        assert float(L.ssim_loss(made, truth, brain, SCALE, none)) == pytest.approx(float(whole), abs=1e-6)


class TestDualSsim:
    """Both terms at full weight, by hand from the pixels' similarities."""

    SIMILARITY = torch.tensor([0.9, 0.7, 0.4, 0.2, 0.3]).reshape(1, 1, 1, 5)
    BRAIN, TUMOUR = (torch.tensor(row).reshape(1, 1, 1, 5) for row in ([1.0, 1, 1, 1, 0], [0.0, 0, 0, 1, 1]))

    @pytest.fixture(autouse=True)
    def _known(self, monkeypatch):
        monkeypatch.setattr(L, "ssim_pixels", lambda *_: self.SIMILARITY)

    def test_the_terms_are_added(self):
        healthy, ill = 1 - (0.9 + 0.7 + 0.4) / 3, 1 - 0.2
        dual = L.dual_ssim_loss(self.BRAIN, self.BRAIN, self.BRAIN, SCALE, self.TUMOUR)
        assert float(dual) == pytest.approx(healthy + ill)
        halves = L.ssim_loss(self.BRAIN, self.BRAIN, self.BRAIN, SCALE, self.TUMOUR)
        assert float(halves) == pytest.approx((healthy + ill) / 2)

    def test_without_tumour_there_is_one_term(self):
        dual = L.dual_ssim_loss(self.BRAIN, self.BRAIN, self.BRAIN, SCALE, 0 * self.TUMOUR)
        assert float(dual) == pytest.approx(1 - (0.9 + 0.7 + 0.4 + 0.2) / 4)


class TestAdversary:
    def test_a_sure_judge_pays_nothing_when_right_and_much_when_wrong(self):
        sure = torch.full((2, 1, 5, 5), 10.0)
        assert float(L.adversarial_loss(sure, real=True)) < 1e-4
        assert float(L.adversarial_loss(sure, real=False)) == pytest.approx(10, abs=0.01)
        assert float(L.adversarial_loss(torch.zeros(1, 1, 2, 2), real=True)) == pytest.approx(math.log(2))

    def test_classification_is_of_the_sequence(self):
        logits = torch.tensor([[0.0, 9.0, 0.0, 0.0]])
        assert float(L.classification_loss(logits, torch.tensor([1]))) < 0.01
        assert float(L.classification_loss(logits, torch.tensor([0]))) > 8


def test_feature_loss_is_one_minus_the_cosine():
    first = torch.randn(2, 8, 3, 3)
    assert float(L.feature_loss(first, 5 * first)) == pytest.approx(0, abs=1e-6)
    assert float(L.feature_loss(first, -first)) == pytest.approx(2, abs=1e-6)


class TestFocalTversky:
    def _logits(self, labels: torch.Tensor) -> torch.Tensor:
        return 20.0 * F.one_hot(labels, 4).movedim(-1, 1).float()

    def test_right_is_free_and_wrong_is_not(self):
        labels = torch.randint(0, 4, (2, 16, 16), generator=torch.Generator().manual_seed(0))
        assert float(L.focal_tversky_loss(self._logits(labels), labels)) < 0.01
        assert float(L.focal_tversky_loss(self._logits((labels + 1) % 4), labels)) > 0.9

    def test_a_missed_pixel_costs_more_than_a_false_one(self):
        labels = torch.zeros(1, 16, 16, dtype=torch.int64)
        labels[:, 4:12, 4:12] = 1
        less, more = labels.clone(), labels.clone()
        less[:, 4:8, 4:12] = 0
        more[:, 12:16, 4:12] = 1
        missed = L.focal_tversky_loss(self._logits(less), labels)
        false = L.focal_tversky_loss(self._logits(more), labels)
        assert float(missed) > float(false)

    def test_it_equals_the_papers_formula(self):
        labels = torch.zeros(1, 64, 64, dtype=torch.int64)
        labels[:, :32] = 1
        half = labels.clone()
        half[:, 16:32] = 0
        # Half of class 1 is missed: 1024 hit, 1024 missed; one pixel of slack.
        index = 1025 / (1024 + 0.7 * 1024 + 1)
        expected = (1 - index) ** 0.75 / 3
        assert float(L.focal_tversky_loss(self._logits(half), labels)) == pytest.approx(expected, rel=1e-3)

    def test_its_gradient_is_finite_where_it_is_perfect(self):
        labels = torch.zeros(1, 16, 16, dtype=torch.int64)
        logits = self._logits(labels).requires_grad_()
        L.focal_tversky_loss(logits, labels).backward()
        assert torch.isfinite(logits.grad).all()


class TestPublishedFocalTversky:
    """FTL = sum of (1 - TI) ** gamma over all four classes, by hand."""

    def test_by_hand(self):
        # Four pixels, half of whose share each time is the first class's and half the second's.
        shares = torch.tensor([0.5, 0.5, 1e-9, 1e-9]).reshape(1, 4, 1, 1).expand(1, 4, 1, 4)
        labels = torch.tensor([[[0, 0, 0, 1]]])
        # Class 0: 1.5 hit, 0.5 false, 1.5 missed. Class 1: 0.5 hit, 1.5 false, 0.5 missed. Two classes are absent.
        first = 1.5 / (1.5 + 0.3 * 0.5 + 0.7 * 1.5)
        second = 0.5 / (0.5 + 0.3 * 1.5 + 0.7 * 0.5)
        present = (1 - first) ** (4 / 3) + (1 - second) ** (4 / 3)
        absent = 2 * (1 - 1 / (1 + 0.3 * 4e-9 / 1e-6)) ** (4 / 3)
        found = float(L.published_focal_tversky_loss(shares.log(), labels))
        assert found == pytest.approx(present + absent, rel=1e-4)

    def test_right_costs_nothing_with_a_finite_gradient(self):
        labels = torch.arange(4).repeat(8).reshape(1, 4, 8)
        logits = (50.0 * F.one_hot(labels, 4).movedim(-1, 1)).requires_grad_()
        loss = L.published_focal_tversky_loss(logits, labels)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
        assert torch.isfinite(logits.grad).all()

    def test_the_background_and_each_class_count_one(self):
        labels = torch.arange(4).repeat(8).reshape(1, 4, 8)
        logits = 50.0 * F.one_hot((labels + 1) % 4, 4).movedim(-1, 1)
        assert float(L.published_focal_tversky_loss(logits, labels)) == pytest.approx(4, rel=1e-5)


class TestConfidence:
    @pytest.mark.parametrize("weight", [0.03, 0.1, 1.0])
    def test_it_is_least_where_the_error_is_expected(self, weight):
        """That is at c = lambda / |error|."""
        error = torch.rand(1, 1, 8, 8) + 0.2
        brain = torch.ones_like(error)
        log = torch.zeros_like(error, requires_grad=True)
        optimizer = torch.optim.Adam([log], lr=0.05)
        for _ in range(400):
            optimizer.zero_grad()
            L.confidence_loss(error, torch.zeros_like(error), brain, log.exp(), weight).backward()
            optimizer.step()
        torch.testing.assert_close(log.detach().exp(), error, rtol=1e-2, atol=1e-3)

    def test_with_a_weight_of_one_it_is_the_laplace_likelihood(self):
        truth, scale = torch.zeros(2, 1, 4, 4), torch.rand(2, 1, 4, 4) + 0.1
        made = torch.randn_like(truth)
        likely = torch.distributions.Laplace(made, scale).log_prob(truth).mean()
        ours = L.confidence_loss(made, truth, torch.ones_like(truth), scale, 1.0)
        torch.testing.assert_close(ours, -likely - float(np.log(2)))

    def test_only_the_brain_counts_and_bfloat16_is_not_summed(self):
        brain = torch.zeros(1, 1, 4, 4)
        brain[..., 1, 1] = 1
        made = torch.full((1, 1, 4, 4), 9.0).bfloat16()
        with torch.autocast("cpu", torch.bfloat16):
            loss = L.confidence_loss(made, torch.zeros(1, 1, 4, 4), brain, torch.full((1, 1, 4, 4), 3.0), 1.0)
        assert loss.dtype == torch.float32
        assert float(loss) == pytest.approx(3 + np.log(3))


class TestSsimOfVolumes:
    def test_it_is_the_metrics_own(self):
        random = np.random.default_rng(0)
        truth, made = (torch.from_numpy(random.random((2, 1, 20, 24, 16))).float() for _ in range(2))
        brain = torch.zeros(2, 1, 20, 24, 16)
        brain[..., 3:18, 2:20, 4:14] = 1
        maps = [
            ssim_map(*((v * brain)[i, 0].numpy().astype(float) for v in (made, truth)), extent=1.0)[brain[i, 0] > 0]
            for i in range(2)
        ]
        ours = L.ssim_loss(made, truth, brain, torch.tensor([[0.0, 1.0]]).repeat(2, 1))
        assert float(ours) == pytest.approx(1 - np.concatenate(maps).mean(), abs=1e-4)

    def test_it_can_be_learned_from_in_every_axis(self):
        truth = torch.rand(1, 1, 16, 20, 24)
        for axis in (2, 3, 4):
            made = truth.roll(1, dims=axis).requires_grad_()
            loss = L.ssim_loss(made, truth, torch.ones_like(truth), torch.tensor([[0.0, 1.0]]))
            loss.backward()
            assert float(loss.detach()) > 0.1
            assert (made.grad.abs().amax(dim=[d for d in range(5) if d != axis]) > 0).all()


def test_dice_of_the_truth_is_nothing_and_of_the_wrong_class_is_one():
    labels = torch.arange(4).repeat(16).reshape(1, 4, 4, 4)
    right = 50 * F.one_hot(labels, 4).movedim(-1, 1).float()
    assert L.dice_loss(right, labels) == pytest.approx(0, abs=1e-3)
    assert L.dice_loss(right.roll(1, dims=1), labels) > 0.9
