from __future__ import annotations

import pytest
import torch

from app.core.constants import MODALITIES
from app.networks.architectures import DS3NET_WIDTHS
from app.networks.ds3net import losses as L
from app.networks.ds3net.generator import CONTRASTED, DISTILLED
from app.preprocessing.normalization import BACKGROUND
from app.training.config import load_recipe
from app.training.optimization import learning_rate
from app.training.tasks.ds3net_step import Ds3NetStep, Slices
from tests.training.ds3net import SMALL_DS3NET, paired_source
from tests.training.helpers import gradient_of

TEACHER = ["teacher", "teacher_heads", "teacher_discriminator"]
BOTH = ["teacher", "teacher_heads", "student", "student_heads", "teacher_discriminator", "student_discriminator"]


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """A generator whose step takes a moment."""
    monkeypatch.setitem(DS3NET_WIDTHS, "compact", 4)


def _task(*changes: str, progress: float = 0.0) -> Ds3NetStep:
    torch.manual_seed(0)
    task = Ds3NetStep(load_recipe("ds3net_compact", [*SMALL_DS3NET, *changes]), torch.device("cpu"))
    task.progress = progress
    return task


def _halves(task: Ds3NetStep, source, step: int = 0) -> tuple[Slices, Slices]:
    paired, unpaired = map(task.slices, source.both(step))
    return paired, unpaired


def _apart(task: Ds3NetStep) -> None:
    """The student differs from its teacher, as after a step of the second stage."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in task.student.parameters():
            value.add_(0.05 * torch.randn_like(value))


class TestFirstStage:
    def test_the_teacher_learns_alone_and_the_student_stays_equal_to_it(self, paired_subjects, unpaired_subjects):
        task, moved = _task(), []
        optimizer = torch.optim.AdamW(task.teacher.generator.parameters(), lr=1e-3)
        before = [p.clone() for p in task.teacher.generator.parameters()]

        def update(name: str) -> bool:
            moved.append(name)
            if name == "teacher":
                optimizer.step()
            return True

        losses = task.step(paired_source(task.recipe, paired_subjects, unpaired_subjects), 0, 1, update)
        assert moved == TEACHER
        names = {"teacher_pixel", "teacher_contrast", "teacher_adversarial", "teacher_discriminator"}
        assert set(losses) == names
        for part in (task.teacher.generator, task.teacher.heads, task.teacher.discriminator):
            assert gradient_of(part).abs().sum() > 0
        assert gradient_of(task.student).abs().sum() == 0
        assert any(not torch.equal(a, b) for a, b in zip(before, task.teacher.generator.parameters(), strict=True))
        for own, taught in zip(task.student.parameters(), task.teacher.parameters(), strict=True):
            assert torch.equal(own, taught)

    def test_every_pixel_counts_alike(self, paired_subjects, unpaired_subjects):
        task = _task()
        slices, _ = _halves(task, paired_source(task.recipe, paired_subjects, unpaired_subjects))
        losses, made = task.teacher_losses(slices)
        assert losses["pixel"].item() == pytest.approx((made - slices.target).abs().mean().item(), rel=1e-4)


class TestSecondStage:
    def test_both_learn(self, paired_subjects, unpaired_subjects):
        task, moved = _task(progress=0.75), []
        _apart(task)
        source = paired_source(task.recipe, paired_subjects, unpaired_subjects)
        losses = task.step(source, 1, 1, lambda name: moved.append(name) is None)
        assert moved == BOTH
        assert {"student_image", "student_feature", "student_contrast", "student_adversarial"} <= set(losses)
        assert {"teacher_pixel", "teacher_discriminator", "student_discriminator"} <= set(losses)
        for learner in (task.teacher, task.student):
            for part in (learner.generator, learner.heads, learner.discriminator):
                assert gradient_of(part).abs().sum() > 0

    def test_the_student_gives_its_teacher_no_gradient(self, paired_subjects, unpaired_subjects):
        task = _task(progress=0.75)
        _apart(task)
        _, unpaired = _halves(task, paired_source(task.recipe, paired_subjects, unpaired_subjects))
        losses, _ = task.student_losses(unpaired)
        torch.stack(list(losses.values())).sum().backward()
        assert gradient_of(task.teacher).abs().sum() == 0
        assert gradient_of(task.student.discriminator).abs().sum() == 0
        assert gradient_of(task.student.generator).abs().sum() > 0
        assert gradient_of(task.student.heads).abs().sum() > 0

    def test_unpaired_slices_teach_by_distillation_alone(self, paired_subjects, unpaired_subjects):
        task = _task(progress=0.75)
        _apart(task)
        _, unpaired = _halves(task, paired_source(task.recipe, paired_subjects, unpaired_subjects))
        assert (unpaired.target == BACKGROUND).all()
        gradients = []
        for target in (unpaired.target, torch.rand_like(unpaired.target)):
            task.student.zero_grad()
            torch.manual_seed(2)
            losses, _ = task.student_losses(Slices(unpaired.sources, target, unpaired.brain))
            assert set(losses) == {"image", "feature", "contrast", "adversarial"}
            torch.stack(list(losses.values())).sum().backward()
            gradients.append(gradient_of(task.student.generator))
        assert torch.equal(*gradients)

    def test_it_begins_with_nothing_to_distil(self, paired_subjects, unpaired_subjects):
        task = _task(progress=0.5)
        _, unpaired = _halves(task, paired_source(task.recipe, paired_subjects, unpaired_subjects))
        losses, _ = task.student_losses(unpaired)
        assert losses["image"].item() == losses["feature"].item() == 0

    def test_difficulty_weighs_pixels(self, paired_subjects, unpaired_subjects):
        task, constant = _task(progress=0.75), _task("ds3net.difficulty=false", progress=0.75)
        slices, _ = _halves(task, paired_source(task.recipe, paired_subjects, unpaired_subjects))
        output = task.teacher.make(slices.sources)
        difficulty, _ = task._judge(task.teacher, output, slices)
        assert (difficulty[slices.brain == 0] == 0.2).all()
        scores = task.teacher.discriminator(output.image)
        inside = difficulty[slices.brain > 0]
        assert (1 - scores).abs().min() <= inside.min()
        assert inside.max() <= (1 - scores).abs().max()
        assert (constant._judge(constant.teacher, output, slices)[0] == 1).all()

    def test_the_losses_of_the_second_stage_are_weighed_by_the_map(self, paired_subjects, unpaired_subjects):
        """Equations 2, 3, 5 and 6 with M of equation 1, from the networks' own answers."""
        task = _task("schedule.precision=fp32", "losses.contrast=0", progress=0.75)
        _apart(task)
        paired, unpaired = _halves(task, paired_source(task.recipe, paired_subjects, unpaired_subjects))
        own, taught = task.teacher.make(paired.sources), task.teacher.make(unpaired.sources)
        difficulty = L.difficulty_map(task.teacher.discriminator(own.image), paired.brain)
        losses, _ = task.teacher_losses(paired)
        assert losses["pixel"].item() == pytest.approx((difficulty * (own.image - paired.target).abs()).mean().item())
        made = task.student.make(unpaired.sources)
        difficulty = L.difficulty_map(task.student.discriminator(made.image), unpaired.brain)
        losses, _ = task.student_losses(unpaired)
        assert losses["image"].item() == pytest.approx((difficulty * (made.image - taught.image).abs()).mean().item())
        expected = [
            (L.resized_difficulty(difficulty, f.shape[2:]) * (f - taught.features[n]).abs()).mean().item()
            for n, f in made.features.items() if n in DISTILLED
        ]  # fmt: skip
        assert losses["feature"].item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)

    def test_the_contrast_is_summed_over_its_layers(self, paired_subjects, unpaired_subjects, monkeypatch):
        seen = []
        monkeypatch.setattr(L, "contrast_loss", lambda q, p, w: seen.append(w) or q.sum() * 0 + 2.0)
        task = _task(progress=0.75)
        paired, _ = _halves(task, paired_source(task.recipe, paired_subjects, unpaired_subjects))
        losses, _ = task.teacher_losses(paired)
        assert losses["contrast"].item() == 2.0 * len(CONTRASTED)
        assert len(seen) == len(CONTRASTED)
        assert not any((w == 1).all() for w in seen)

    @pytest.mark.parametrize("role,weights", [("teacher", {"pixel": 100, "contrast": 1, "adversarial": 1}),
                                              ("student", {"image": 100, "feature": 1, "contrast": 1,
                                                           "adversarial": 1})])  # fmt: skip
    def test_equations_4_and_7_sum_their_terms(self, role, weights):
        task = _task(progress=0.75)
        task.recipe = load_recipe("ds3net")
        values = {name: torch.tensor(0.5 + n, requires_grad=True) for n, name in enumerate(weights)}
        task._add(role, values, 0.5, 0.25, {})
        assert {name: v.grad.item() for name, v in values.items()} == {n: 0.5 * 0.25 * w for n, w in weights.items()}

    def test_the_students_share_falls(self, paired_subjects, unpaired_subjects):
        norms = []
        for progress in (0.5, 0.75):
            task = _task("ds3net.difficulty=false", progress=progress)
            _apart(task)
            source = paired_source(task.recipe, paired_subjects, unpaired_subjects)
            torch.manual_seed(3)
            task.step(source, 0, 1, lambda _: False)
            norms.append(gradient_of(task.student.generator).norm())
        assert (norms[1] / norms[0]).item() == pytest.approx(0.5, rel=0.02)


class TestStages:
    def test_rates_fall_in_each_stage(self):
        task = _task("ds3net.teacher_share=0.4")
        seen = []
        for progress in (0.0, 0.2, 0.399999, 0.4, 0.7, 1.0):
            task.progress = progress
            seen.append(task.stage_progress)
        assert seen == pytest.approx([0.0, 0.475, 0.95, 0.0, 0.5, 1.0], abs=1e-4)

    def test_the_teacher_slows_down(self):
        task, rates = _task(), []
        for task.progress in (0.1, 0.9):
            rates.append({name: task.rate_factor(name) for name in task.networks})
        assert rates[0] == dict.fromkeys(task.networks, 1.0) | dict.fromkeys(TEACHER[2:], 0.5) | {
            "student_discriminator": 0.5
        }
        assert rates[1]["teacher"] == rates[1]["teacher_heads"] == pytest.approx(0.2)
        assert rates[1]["teacher_discriminator"] == pytest.approx(0.1)
        assert (rates[1]["student"], rates[1]["student_discriminator"]) == (1.0, 0.5)

    def test_rates_of_the_paper(self):
        task = _task("ds3net.teacher_share=0.4")
        rates = []
        for task.progress in (0.0, 0.399999, 0.4, 0.7):
            peak = learning_rate(task.recipe.optimizer, task.recipe.schedule, task.stage_progress)
            rates.append({n: peak * task.rate_factor(n) for n in task.networks})
        first, last, second, half = rates
        assert (first["teacher"], first["teacher_discriminator"]) == pytest.approx((6e-4, 3e-4))
        assert last["teacher"] == pytest.approx(0.05 * 6e-4, rel=1e-3)
        assert (second["teacher"], second["teacher_discriminator"]) == pytest.approx((6e-4 / 5, 3e-4 / 5))
        assert (second["student"], second["student_heads"]) == pytest.approx((6e-4, 6e-4))
        assert (half["student"], half["student_discriminator"]) == pytest.approx((3e-4, 1.5e-4))

    def test_the_student_is_what_is_published(self):
        task = _task()
        assert next(iter(task.networks)) == "student"
        assert set(task.average.state_dict()) == set(task.networks["student"].state_dict())


class TestParts:
    def test_a_loss_of_weight_0_is_left_out(self, paired_subjects, unpaired_subjects):
        task, moved = _task("losses.adversarial=0", "losses.contrast=0", "losses.feature=0", progress=0.9), []
        source = paired_source(task.recipe, paired_subjects, unpaired_subjects)
        losses = task.step(source, 0, 1, lambda name: moved.append(name) is None)
        assert set(losses) == {"teacher_pixel", "student_image"}
        assert moved == ["teacher", "student"]

    @pytest.mark.parametrize("progress", [0.0, 0.9])
    def test_pieces_add_up(self, paired_subjects, unpaired_subjects, progress):
        gradients = []
        for pieces in (1, 2):
            task = _task("schedule.precision=fp32", "losses.contrast=0", progress=progress)
            _apart(task)
            source = paired_source(task.recipe, paired_subjects, unpaired_subjects)
            task.step(source, 0, pieces, lambda _: False)
            gradients.append(torch.cat([gradient_of(task.teacher), gradient_of(task.student)]))
        assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.999

    def test_sources_are_the_others_in_the_papers_range(self, paired_subjects, unpaired_subjects):
        task = _task()
        source = paired_source(task.recipe, paired_subjects, unpaired_subjects)
        sample = source.alone(0)
        slices = task.slices(sample)
        others = [i for i, m in enumerate(MODALITIES) if m != "t1c"]
        assert torch.allclose(slices.sources, sample.batch.images[:, others], atol=1e-3)
        assert torch.allclose(slices.target, sample.batch.images[:, :1], atol=1e-3)
        assert slices.sources.abs().max() <= 1

    def test_contrast_sees_every_layer(self, paired_subjects, unpaired_subjects):
        task = _task()
        slices, _ = _halves(task, paired_source(task.recipe, paired_subjects, unpaired_subjects))
        task.teacher_losses(slices)[0]["contrast"].backward()
        for layer in CONTRASTED:
            assert gradient_of(task.teacher.heads.heads[str(layer)]).abs().sum() > 0

    def test_it_learns_one_batch_by_heart(self, paired_subjects, unpaired_subjects):
        task = _task("losses.adversarial=0", "losses.contrast=0")
        optimizer = torch.optim.AdamW(task.teacher.generator.parameters(), lr=3e-3)
        source = paired_source(task.recipe, paired_subjects, unpaired_subjects)
        losses = [task.step(source, 0, 1, lambda _: optimizer.step() is None)["teacher_pixel"] for _ in range(12)]
        assert losses[-1] < 0.6 * losses[0]
