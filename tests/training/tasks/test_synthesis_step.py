from __future__ import annotations

from itertools import count

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.networks.unet import Segmenter2d
from app.preprocessing.normalization import BACKGROUND
from app.training.data.cache import NORMALIZATION, build_cache
from app.training.data.slices import Sampler
from app.training.data.unpaired import PairedSource
from app.training.losses import TVERSKY_LOSSES, ssim_pixels
from app.training.optimization import FIRST_SCALE
from app.training.tasks.synthesis import SynthesisTask
from app.training.tasks.synthesis_jobs import draw_jobs
from tests.training.helpers import by_heart, gradient_of, moving, small, source_of

ALL_LOSSES = {"l1", "ssim", "adversarial", "classification", "feature", "cycle", "tversky"}


@pytest.fixture(scope="module")
def subjects(training_data, training_cache):
    return build_cache(training_data, training_cache)


@pytest.fixture(scope="module")
def unpaired(unpaired_data, tmp_path_factory):
    return build_cache(unpaired_data, tmp_path_factory.mktemp("unpaired-volume"), NORMALIZATION, "t1c")


def only(**weights: float) -> list[str]:
    """Changes of a recipe that leave it these losses, on whole brains in full precision."""
    names = ALL_LOSSES | {"enhancing"}
    return [*(f"losses.{n}={weights.get(n, 0)}" for n in sorted(names)), "schedule.precision='fp32'",
            "schedule.targets_per_batch=1", "data.single_missing=1.0"]  # fmt: skip


def new_synthesis(recipe, segmenter=None):
    """An untrained task, the same each time, that makes the same of the same: without dropout."""
    torch.manual_seed(0)
    task = SynthesisTask(recipe, torch.device("cpu"), segmenter)
    task.generator.eval()
    return task


def new_segmenter():
    torch.manual_seed(1)
    return Segmenter2d((8, 8, 8, 8)).requires_grad_(False).eval()


def calls_of(monkeypatch, network, name="forward"):
    """What a network's method is called with and gives from now on, in order; gradients of results are kept."""
    calls = []
    original = getattr(network, name)

    def listening(*arguments):
        result = original(*arguments)
        if isinstance(result, torch.Tensor) and result.requires_grad:
            result.retain_grad()
        calls.append((arguments, result))
        return result

    monkeypatch.setattr(network, name, listening)
    return calls


def step_of(source, recipe, target):
    """The first step whose batch makes a sequence."""
    return next(s for s in count() if draw_jobs(source.at(s).plan, recipe.data, 1)[0].target == target)


def in_brain(made, batch):
    """What is shown of made slices: background outside the brain."""
    return torch.where(batch.brain > 0, made.detach(), torch.full_like(made, BACKGROUND))


class TestIncompleteExams:
    """Exams that lack a sequence teach by what the averaged network makes of it."""

    CHANGES = ("data.withheld='t1c'", "schedule.unpaired_from=0.5", "schedule.batch_size=2")

    @pytest.fixture
    def source(self, subjects, unpaired):
        recipe = small(*self.CHANGES)
        return PairedSource(subjects, unpaired, recipe.data, recipe.schedule.batch_size, kind=Sampler)

    def _task(self, *changes):
        task = new_synthesis(small(*only(l1=1), *self.CHANGES, *changes))
        task.progress = 0.5
        return task

    def _distilled(self, task, source):
        """The losses of the first step whose incomplete half lacks what is made."""
        steps = (task.step(source, step, 1, moving()) for step in count())
        return next(losses for losses in steps if "distilled" in losses)

    def test_they_are_not_seen_before_the_teacher_knows_something(self, source, monkeypatch):
        task = self._task()
        task.progress = 0.4
        monkeypatch.setattr(source, "both", None)
        assert set(task.step(source, 0, 1, moving())) == {"l1"}

    def test_the_averaged_network_teaches_by_its_images_and_features(self, source):
        plain = [f"augmentation.{name}=0" for name in ("contrast", "brightness", "gamma", "bias", "noise", "thick")]
        task = self._task(*plain, "losses.distilled=1")
        # The student is its teacher, and sees what it sees: there is nothing to learn.
        losses = self._distilled(task, source)
        assert losses["distilled"].item() == pytest.approx(0, abs=1e-5)
        assert losses["distilled_feature"].item() == pytest.approx(0, abs=1e-5)
        with torch.no_grad():
            for weight in task.average.parameters():
                weight.add_(0.01)
        assert self._distilled(task, source)["distilled"] > 1e-3

    def test_the_teacher_gets_no_gradient_and_the_student_does(self, source):
        task = self._task("losses.l1=0", "losses.distilled=1")
        with torch.no_grad():
            for weight in task.average.parameters():
                weight.add_(0.01)
        self._distilled(task, source)
        assert all(p.grad is None for p in task.average.parameters())
        assert gradient_of(task.generator).abs().sum() > 0

    def test_each_exam_counts_by_its_share_of_the_batch(self, source):
        assert [(p.complete, p.share) for p in self._task()._parts(source, 0, 1)] == [(True, 0.5), (False, 0.5)]

    def test_the_losses_of_complete_exams_are_reported_whole(self, source):
        task = self._task()
        part = next(p for p in task._parts(source, 0, 1) if p.complete)
        losses, _, _ = task._losses_of(part.batch, part.seen, part.jobs[0])
        # Half of the batch counts half in the gradient, and as it is in the log.
        assert task.step(source, 0, 1, moving())["l1"].item() == pytest.approx(losses["l1"].item(), rel=1e-5)

    def test_the_discriminator_sees_complete_exams_alone(self, source, monkeypatch):
        task = new_synthesis(small("data.withheld='t1c'", "schedule.unpaired_from=0"))
        seen = calls_of(monkeypatch, task, "_discriminate")
        task.step(source, 0, 1, moving())
        assert [arguments[0].complete for arguments, _ in seen] == [True]

    def test_what_they_have_is_learnt_from_the_scan(self, source):
        task = self._task("losses.ssim=1", "losses.distilled=0", "losses.distilled_feature=0")
        t1c = MODALITIES.index("t1c")
        part = next(p for s in count() for p in task._parts(source, s, 1) if not p.complete and p.jobs[0].target != t1c)
        losses, _, _ = task._losses_of_incomplete(part.batch, part.seen, part.jobs[0])
        assert set(losses) == {"unpaired_l1", "unpaired_ssim"}


class TestAlgorithmOne:
    def test_every_loss_is_there_and_moves_both_networks(self, subjects):
        recipe = small("losses.tversky=5", "data.tumour_share=1.0", "data.single_missing=1.0")
        task = SynthesisTask(recipe, torch.device("cpu"), Segmenter2d((8, 8, 8, 8)).requires_grad_(False).eval())
        moved = {}

        def update(name: str) -> bool:
            moved[name] = [
                p.grad is not None and bool(p.grad.abs().sum() > 0) for p in task.networks[name].parameters()
            ]
            return True

        losses = task.step(source_of(subjects, recipe), 0, 1, update)
        assert set(losses) == ALL_LOSSES | {"discriminator", "discriminator_class"}
        assert all(torch.isfinite(v) for v in losses.values())
        # All four encoders learn from one batch: each sequence is made in turn.
        assert np.mean(moved["generator"]) > 0.95
        assert all(moved["discriminator"])
        assert all(p.grad is None for p in task.segmenter.parameters())

    def test_what_must_be_made_is_not_augmented(self, subjects, monkeypatch):
        truths = []
        monkeypatch.setattr(
            "app.training.losses.l1_loss", lambda made, truth, _: truths.append(truth) or made.sum() * 0
        )
        recipe = small(
            "schedule.targets_per_batch=1", "losses.cycle=0", "losses.feature=0", "augmentation.contrast=0.5"
        )
        task = SynthesisTask(recipe, torch.device("cpu"))
        source = source_of(subjects, recipe)
        batch, shown, (job,) = task.prepare(source, 3)
        task.step(source, 3, 1, lambda _: True)
        assert torch.equal(truths[0], batch.images[:, job.target : job.target + 1])
        assert not torch.equal(truths[0], shown[:, job.target : job.target + 1])

    @pytest.mark.parametrize("changes", [["fade=1.0"], ["recolour_t1n=1.0", "recolour_t2f=1.0"]])
    def test_other_shades_of_tumours_are_in_what_is_seen_alone(self, subjects, changes):
        still = [
            "flip=0",
            "shift=0",
            "rotate=0",
            "zoom=0",
            "contrast=0",
            "brightness=0",
            "gamma=0",
            "bias=0",
            "noise=0",
        ]
        recipe = small("data.tumour_share=1.0", *(f"augmentation.{change}" for change in [*still, *changes]))
        task, source = SynthesisTask(recipe, torch.device("cpu")), source_of(subjects, recipe)
        batch, seen, _ = task.prepare(source, 0)
        assert torch.equal(batch.images, source.at(0).batch.images)
        assert not torch.equal(seen, batch.images)

    def test_the_discriminator_learns_to_tell_real_from_made(self, subjects):
        recipe = small("schedule.targets_per_batch=1", "losses.cycle=0", "losses.feature=0")
        torch.manual_seed(0)
        task = SynthesisTask(recipe, torch.device("cpu"))
        source = source_of(subjects, recipe)
        update = moving(discriminator=torch.optim.Adam(task.discriminator.parameters(), lr=2e-3))
        losses = [task.step(source, 0, 1, update)["discriminator"] for _ in range(25)]
        assert losses[-1] < 0.5 * losses[0]
        batch, _, (job,) = task.prepare(source, 0)
        real, named = task.discriminator(batch.images[:, job.target : job.target + 1])
        assert real.mean() > 0
        assert (named.argmax(dim=1) == job.target).all()

    def test_a_loss_of_weight_zero_is_not_computed(self, subjects):
        off = [f"losses.{n}=0" for n in ("adversarial", "classification", "feature", "cycle", "ssim")]
        recipe = small(*off)
        task = SynthesisTask(recipe, torch.device("cpu"))
        assert task.discriminator is None
        assert set(task.step(source_of(subjects, recipe), 0, 1, lambda _: True)) == {"l1"}

    def test_enhancing_tumour_counts_in_a_made_t1c_only(self, subjects):
        off = [f"losses.{n}=0" for n in ("adversarial", "classification", "feature", "cycle", "ssim")]
        recipe = small(*off, "losses.enhancing=1", "data.tumour_share=1.0", "schedule.targets_per_batch=1")
        task = SynthesisTask(recipe, torch.device("cpu"))
        source = source_of(subjects, recipe)
        seen = {}
        for step in range(12):
            batch, _, (job,) = task.prepare(source, step)
            losses = task.step(source, step, 1, lambda _: True)
            assert ("enhancing" in losses) == (MODALITIES[job.target] == "t1c")
            if "enhancing" in losses:
                seen[bool((batch.labels == 3).any())] = float(losses["enhancing"])
        assert seen[True] > 0

    def test_pieces_give_the_gradient_of_the_whole(self, subjects):
        # L1 is a mean over brain pixels; with slices of unlike brains the pieces' mean differs a little.
        recipe = small("schedule.batch_size=4", "losses.ssim=0", "losses.adversarial=0", "losses.classification=0",
                       "losses.feature=0", "losses.cycle=0", "schedule.targets_per_batch=1")  # fmt: skip
        gradients = []
        for pieces in (1, 2):
            torch.manual_seed(0)
            task = SynthesisTask(recipe, torch.device("cpu"))
            task.generator.eval()
            task.step(source_of(subjects, recipe), 0, pieces, lambda _: True)
            held = [p.grad for p in task.generator.parameters() if p.grad is not None]
            gradients.append(torch.cat([g.flatten() for g in held]))
        assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.95

    def test_a_gradient_that_is_not_finite_ends_the_batch_before_the_discriminator(self, subjects):
        recipe = small()
        task = SynthesisTask(recipe, torch.device("cpu"))
        asked = []
        losses = task.step(source_of(subjects, recipe), 0, 1, lambda name: asked.append(name) or False)
        assert asked == ["generator"]
        assert "discriminator" not in losses

    @pytest.mark.parametrize("kind", ["hybrid", "unet"])
    def test_it_learns_one_batch_by_heart(self, subjects, kind, monkeypatch):
        recipe = small("losses.feature=0", "losses.cycle=0", "losses.adversarial=0", "losses.classification=0",
                       f"network.kind='{kind}'", "schedule.targets_per_batch=1")  # fmt: skip
        torch.manual_seed(0)
        task = SynthesisTask(recipe, torch.device("cpu"))
        losses = by_heart(task, source_of(subjects, recipe), steps=40, rate=1e-3)
        assert losses[-1]["l1"] < 0.6 * losses[0]["l1"]
        assert losses[-1]["ssim"] < losses[0]["ssim"]


class TestSimilarity:
    """What SSIM a made sequence is given."""

    @pytest.mark.parametrize("tissue", ["whole", "dual"])
    def test_it_is_seen_in_its_own_range_and_tissue(self, subjects, monkeypatch, tissue):
        recipe = small(*only(ssim=1), f"losses.ssim_tissue='{tissue}'", "data.tumour_share=1.0")
        task = new_synthesis(recipe)
        source = source_of(subjects, recipe)
        step = step_of(source, recipe, 2)
        images = calls_of(monkeypatch, task.generator, "image")
        found = float(task.step(source, step, 1, lambda _: True)["ssim"])
        batch, _, _ = task.prepare(source, step)
        made, truth, brain = images[0][1].detach(), batch.images[:, 2:3], batch.brain > 0
        ill = brain & (batch.labels[:, None] > 0)
        assert ill.any()
        expected = {}
        for name, index in (("own", 2), ("another's", 0)):
            similarity = ssim_pixels(made, truth, batch.brain, batch.scale[:, index])
            halves = [1 - float(similarity[where].mean()) for where in (brain & ~ill, ill)]
            expected[name, "whole"] = 1 - float(similarity[brain].mean())
            expected[name, "dual"] = sum(halves) / 2
        assert found == pytest.approx(expected["own", tissue], rel=1e-4)
        wrong = [value for key, value in expected.items() if key != ("own", tissue)]
        assert all(abs(value - found) > 1e-3 for value in wrong)

    def test_the_sum_has_both_tissues_at_full_weight(self, subjects):
        changes = [*only(ssim=1), "data.tumour_share=1.0"]
        dual, both = (small(*changes, f"losses.ssim_tissue='{tissue}'") for tissue in ("dual", "sum"))
        source = source_of(subjects, dual)
        half, full = (float(new_synthesis(r).step(source, 0, 1, lambda _: True)["ssim"]) for r in (dual, both))
        assert full == pytest.approx(2 * half, rel=1e-5)


class TestPixels:
    """Where L1 and cycle look, and what others see of a result."""

    def _ran(self, subjects, monkeypatch, *changes):
        recipe = small(*only(l1=1, cycle=1, adversarial=1), *changes)
        task = new_synthesis(recipe)
        source = source_of(subjects, recipe)
        images = calls_of(monkeypatch, task.generator, "image")
        opinions = calls_of(monkeypatch, task.discriminator)
        losses = task.step(source, 0, 1, lambda _: True)
        batch, _, (job,) = task.prepare(source, 0)
        return losses, batch, job, [made for _, made in images], opinions[0][0][0]

    @pytest.mark.parametrize("mask", ["true", "false"])
    def test_all_pixels(self, subjects, monkeypatch, mask):
        changes = ["losses.pixels='all'", f"losses.mask_background={mask}"]
        losses, batch, job, images, seen = self._ran(subjects, monkeypatch, *changes)
        for name, image, index in zip(("l1", "cycle"), images, (job.target, job.second), strict=True):
            shown = in_brain(image, batch) if mask == "true" else image.detach()
            assert float(losses[name]) == pytest.approx(
                float((shown - batch.images[:, [index]]).abs().mean()), rel=1e-5
            )
        assert torch.equal(seen, in_brain(images[0], batch) if mask == "true" else images[0])

    def test_what_is_masked_teaches_nothing(self, subjects, monkeypatch):
        for mask in ("true", "false"):
            changes = ["losses.pixels='all'", f"losses.mask_background={mask}"]
            _, batch, _, images, _ = self._ran(subjects, monkeypatch, *changes)
            outside = images[0].grad[batch.brain == 0]
            assert bool(outside.any()) == (mask == "false")


class TestUpdates:
    """Once per batch, or once per sequence (algorithm 1)."""

    def _names(self, subjects, *changes):
        recipe = small("schedule.targets_per_batch=4", *changes)
        task, names = new_synthesis(recipe), []
        losses = task.step(source_of(subjects, recipe), 0, 1, lambda name: names.append(name) or True)
        return names, losses

    def test_one_for_the_batch(self, subjects):
        assert self._names(subjects)[0] == ["generator", "discriminator"]

    def test_one_for_each_sequence(self, subjects):
        names, losses = self._names(subjects, "schedule.update='sequence'")
        assert names == ["generator", "discriminator"] * 4
        _, together = self._names(subjects)
        # Nothing moves here: the same means over all four.
        assert {k: float(v) for k, v in losses.items()} == pytest.approx({k: float(v) for k, v in together.items()})

    def test_its_gradient_is_of_one_sequence(self, subjects):
        def gradients(turn):
            recipe = small(*only(l1=1), "schedule.targets_per_batch=4", f"schedule.update='{turn}'")
            task, held = new_synthesis(recipe), []
            task.step(source_of(subjects, recipe), 0, 1, lambda _: held.append(gradient_of(task.generator)) or True)
            return held

        (whole,), parts = gradients("batch"), gradients("sequence")
        assert len(parts) == 4
        assert (sum(parts) - whole).norm() < 1e-4 * whole.norm()

    def test_a_skipped_update_leaves_the_next_sequence_to_be_tried(self, subjects):
        recipe = small("schedule.targets_per_batch=4", "schedule.update='sequence'")
        names = []
        task = new_synthesis(recipe)
        task.step(source_of(subjects, recipe), 0, 1, lambda name: bool(names.append(name)))
        assert names == ["generator"] * 4


class TestMixedBatches:
    """Every sample lacks its own sequences."""

    RECIPE = (*only(l1=1, cycle=1, feature=1, ssim=1, adversarial=1, classification=1), "data.availability='sample'",
              "data.single_missing=0.4", "schedule.batch_size=4", "data.views=['axial']")  # fmt: skip

    def test_each_sample_is_made_as_it_would_be_alone(self, subjects, monkeypatch):
        recipe = small(*self.RECIPE)
        task = new_synthesis(recipe)
        source = source_of(subjects, recipe)
        step = next(s for s in count() if len(set(task.prepare(source, s)[2][0].target.tolist())) > 2)
        images = calls_of(monkeypatch, task.generator, "image")
        losses = task.step(source, step, 1, lambda _: True)
        batch, seen, (job,) = task.prepare(source, step)
        made = images[0][1].detach()
        with torch.no_grad():
            for i, target in enumerate(job.target.tolist()):
                members = tuple(torch.nonzero(job.present[i]).flatten().tolist())
                alone = task.generator(seen[[i]], job.present[[i]], job.target[[i]], batch.views[[i]], members=members)
                torch.testing.assert_close(made[[i]], alone, rtol=1e-3, atol=1e-4)
                assert target not in members
        truth = torch.cat([batch.images[[i], [t]] for i, t in enumerate(job.target.tolist())])[:, None]
        wrong = (made - truth).abs()[batch.brain > 0].mean()
        assert float(losses["l1"]) == pytest.approx(float(wrong), rel=1e-4)

    def test_the_second_pass_makes_what_each_sample_dropped(self, subjects, monkeypatch):
        recipe = small(*self.RECIPE)
        task = new_synthesis(recipe)
        source = source_of(subjects, recipe)
        calls = {name: calls_of(monkeypatch, task.generator, name) for name in ("encode", "features_of", "image")}
        losses = task.step(source, 0, 1, lambda _: True)
        batch, shown, (job,) = task.prepare(source, 0)
        (_, ((seen, present, _), _)), made = calls["encode"], in_brain(calls["image"][0][1], batch)
        rows = list(zip(job.target.tolist(), job.second.tolist(), strict=True))
        for i, (target, second) in enumerate(rows):
            assert torch.equal(seen[i, target], made[i, 0])
            others = [m for m in range(4) if m != target]
            assert torch.equal(seen[i, others], shown[i, others])
            assert [m for m in range(4) if present[i, m]] == [m for m in range(4) if m != second]
        assert calls["features_of"][1][0][2].tolist() == job.second.tolist()
        truth = torch.stack([batch.images[i, second] for i, (_, second) in enumerate(rows)])[:, None]
        again = (calls["image"][1][1].detach() - truth).abs()[batch.brain > 0].mean()
        assert float(losses["cycle"]) == pytest.approx(float(again), rel=1e-4)

    def test_pieces_have_their_samples_jobs(self, subjects):
        recipe = small(*only(l1=1), *self.RECIPE[-4:], "losses.pixels='all'")
        gradients = []
        for pieces in (1, 3):
            task = new_synthesis(recipe)
            task.step(source_of(subjects, recipe), 0, pieces, lambda _: True)
            gradients.append(gradient_of(task.generator))
        assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[0].norm()


class TestFloat16:
    PLAIN = ("network.kind='unet'", "network.widths=[8,16]", "data.views=['axial']")

    def test_small_gradients_survive_and_come_back_to_their_size(self, subjects):
        gradients = {}
        for precision in ("fp32", "fp16"):
            recipe = small(*only(l1=1e-4), *self.PLAIN, f"schedule.precision='{precision}'")
            task = new_synthesis(recipe)
            task.step(source_of(subjects, recipe), 0, 1, lambda _: True)
            gradients[precision] = gradient_of(task.generator)
        assert F.cosine_similarity(*gradients.values(), dim=0) > 0.98
        assert float(gradients["fp16"].norm()) == pytest.approx(float(gradients["fp32"].norm()), rel=0.1)

    def test_its_scale_outlives_an_interruption(self, subjects):
        recipe = small(*only(l1=1), *self.PLAIN, "schedule.precision='fp16'")
        task = new_synthesis(recipe)
        task.step(source_of(subjects, recipe), 0, 1, lambda _: False)
        state = dict(task.task_state)
        assert state["loss_scale"] == FIRST_SCALE / 2
        again = new_synthesis(recipe)
        again.restore_task_state(state)
        assert again.task_state == state


class TestSecondPass:
    """It drops another sequence and makes it, from the first pass's result among the others."""

    @pytest.fixture
    def ran(self, subjects, monkeypatch):
        recipe = small(*only(cycle=1, feature=1))
        task = new_synthesis(recipe)
        source = source_of(subjects, recipe)
        calls = {name: calls_of(monkeypatch, task.generator, name) for name in ("encode", "features_of", "image")}
        losses = task.step(source, 0, 1, lambda _: True)
        batch, shown, (job,) = task.prepare(source, 0)
        return batch, shown, job, calls, losses

    def test_it_sees_the_first_ones_result(self, ran):
        batch, shown, job, calls, _ = ran
        ((first, present, members), _), ((second, present_again, again), _) = calls["encode"]
        assert torch.equal(first, shown)
        assert job.target not in members
        assert sorted(again) == [i for i in range(4) if i != job.second]
        for flags, there in ((present, members), (present_again, again)):
            assert [i for i in range(4) if flags[0, i]] == list(there)
        made = in_brain(calls["image"][0][1], batch)
        assert torch.equal(second[:, job.target : job.target + 1], made)
        others = [i for i in range(4) if i != job.target]
        assert torch.equal(second[:, others], shown[:, others])

    def test_the_cycle_is_closed_with_the_sequence_that_it_dropped(self, ran):
        batch, _, job, calls, losses = ran
        asked = [arguments[2].tolist() for arguments, _ in calls["features_of"]]
        assert asked == [[job.target] * len(batch), [job.second] * len(batch)]
        for name, number, index in (("l1", 0, job.target), ("cycle", 1, job.second)):
            wrong = (calls["image"][number][1].detach() - batch.images[:, index : index + 1]).abs()
            assert losses[name] == pytest.approx(float(wrong[batch.brain > 0].mean()), rel=1e-4)

    def test_the_bottlenecks_of_both_passes_are_compared(self, ran):
        _, _, _, calls, losses = ran
        (_, (first, _)), (_, (second, _)) = calls["encode"]
        expected = 1 - F.cosine_similarity(first.detach(), second.detach(), dim=1).mean()
        assert losses["feature"] == pytest.approx(float(expected), rel=1e-4)
        assert losses["feature"] > 1e-3

    def test_it_teaches_the_first_pass_too(self, ran):
        batch, _, _, calls, _ = ran
        first = calls["image"][0][1]
        # The loss on the first pass itself has no weight here.
        assert first.grad[batch.brain > 0].abs().sum() > 0
        assert not first.grad[batch.brain == 0].any()


class TestTeachers:
    """The frozen networks that judge what the generator makes."""

    @pytest.mark.parametrize("loss", ["adversarial", "classification"])
    def test_the_generator_is_led_to_what_convinces_the_discriminator(self, subjects, monkeypatch, loss):
        recipe = small(*only(**{loss: 1}))
        task = new_synthesis(recipe)
        source = source_of(subjects, recipe)
        step = step_of(source, recipe, 2)
        images = calls_of(monkeypatch, task.generator, "image")

        def update(name: str) -> bool:
            # What convinces it is no lesson for the discriminator.
            assert name != "generator" or all(p.grad is None for p in task.discriminator.parameters())
            return True

        task.step(source, step, 1, update)
        assert gradient_of(task.generator).abs().sum() > 0
        batch, _, _ = task.prepare(source, step)
        ((_, made),) = images
        opinions = []
        for image in (made, made - 0.01 * made.grad / made.grad.abs().max()):
            patches, classes = task.discriminator(in_brain(image, batch))
            told = {"adversarial": F.logsigmoid(patches), "classification": classes.log_softmax(dim=1)[:, 2]}
            opinions.append(told[loss].mean().item())
        assert opinions[1] > opinions[0]

    def test_the_discriminator_compares_the_real_sequence_with_the_made_one(self, subjects, monkeypatch):
        recipe = small(*only(adversarial=1))
        task = new_synthesis(recipe)
        source = source_of(subjects, recipe)
        step = step_of(source, recipe, 2)
        images = calls_of(monkeypatch, task.generator, "image")
        opinions = calls_of(monkeypatch, task.discriminator)
        losses = task.step(source, step, 1, lambda _: True)
        batch, _, _ = task.prepare(source, step)
        made = in_brain(images[0][1], batch)
        # First it is shown what the generator made, to teach that one; then it learns itself.
        seen = [arguments[0] for arguments, _ in opinions]
        for image, expected in zip(seen, (made, in_brain(batch.images[:, 2:3], batch), made), strict=True):
            assert torch.equal(image, expected)
        (_, _), (_, (real, named)), (_, (fake, _)) = opinions
        told = [F.softplus(-real.detach()).mean(), F.softplus(fake.detach()).mean()]
        assert losses["discriminator"] == pytest.approx(float(sum(told)) / 2, rel=1e-4)
        assert losses["discriminator_class"] == pytest.approx(
            float(-named.detach().log_softmax(1)[:, 2].mean()), rel=1e-4
        )

    def test_the_segmenter_sees_the_made_sequence_among_real_ones(self, subjects, monkeypatch):
        recipe = small(*only(tversky=1), "data.tumour_share=1.0")
        task = new_synthesis(recipe, new_segmenter())
        source = source_of(subjects, recipe)
        images, answers = calls_of(monkeypatch, task.generator, "image"), calls_of(monkeypatch, task.segmenter)
        task.step(source, 0, 1, lambda _: True)
        batch, _, (job,) = task.prepare(source, 0)
        ((seen, *_), _), made = answers[0], images[0][1]
        assert torch.equal(seen[:, job.target : job.target + 1], in_brain(made, batch))
        others = [i for i in range(4) if i != job.target]
        assert torch.equal(seen[:, others], batch.images[:, others])
        assert made.grad.abs().sum() > 0
        assert gradient_of(task.generator).abs().sum() > 0

    def test_focal_tversky_has_the_form_of_the_recipe(self, subjects, monkeypatch):
        found = {}
        for form in ("tumour", "published"):
            recipe = small(*only(tversky=1), "data.tumour_share=1.0", f"losses.tversky_form='{form}'")
            task = new_synthesis(recipe, new_segmenter())
            answers = calls_of(monkeypatch, task.segmenter)
            source = source_of(subjects, recipe)
            found[form] = float(task.step(source, 0, 1, lambda _: True)["tversky"])
            batch, _, _ = task.prepare(source, 0)
            expected = TVERSKY_LOSSES[form](answers[0][1].detach(), batch.labels)
            assert found[form] == pytest.approx(float(expected), rel=1e-5)
        assert found["tumour"] != pytest.approx(found["published"], rel=0.1)

    def test_the_discriminator_has_the_form_of_the_recipe(self, subjects):
        recipe = small(*only(adversarial=1, classification=1), "network.discriminator='published'")
        task = new_synthesis(recipe)
        assert task.discriminator.form == "published"
        losses = task.step(source_of(subjects, recipe), 0, 1, lambda _: True)
        assert all(torch.isfinite(v) for v in losses.values())


class TestWeights:
    def test_the_losses_gradients_add_up_by_the_recipes_weights(self, subjects):
        weights = {name: 0.5 * n for n, name in enumerate(sorted(ALL_LOSSES | {"enhancing"}), 1)}
        changes = ["data.tumour_share=1.0", "data.views=['axial']"]
        recipe = small(*only(l1=1), *changes)
        source = source_of(subjects, recipe)
        # A step in which every loss has something to say.
        step = next(
            s for s in count() if MODALITIES[draw_jobs((drawn := source.at(s)).plan, recipe.data, 1)[0].target] == "t1c"
            and (drawn.batch.labels == 3).any()
        )  # fmt: skip

        def gradient(**chosen: float) -> torch.Tensor:
            task = new_synthesis(small(*only(**chosen), *changes), new_segmenter())
            task.step(source, step, 1, lambda _: True)
            return gradient_of(task.generator)

        parts = {name: weight * gradient(**{name: 1}) for name, weight in weights.items()}
        expected = torch.stack([*parts.values()]).sum(dim=0)
        together = gradient(**weights)
        assert (together - expected).norm() < 1e-3 * expected.norm()
        # None is so small beside the others that its weight would not show.
        for name, part in parts.items():
            assert part.norm() > 1e-2 * expected.norm(), name

    def test_the_discriminators_gradients_add_up_by_the_recipes_weights(self, subjects):
        def gradient(real: float, named: float) -> torch.Tensor:
            recipe = small(*only(adversarial=1), f"losses.discriminator={real}", f"losses.discriminator_class={named}")
            torch.manual_seed(2)
            task = new_synthesis(recipe)
            task.step(source_of(subjects, recipe), 0, 1, lambda _: True)
            return gradient_of(task.discriminator)

        expected = 2 * gradient(1, 0) + 3 * gradient(0, 1)
        assert (gradient(2, 3) - expected).norm() < 1e-3 * expected.norm()
        assert expected.norm() > 0


class TestExamsAsScanned:
    """The network sees what a clinic brings; what it must make is of the same, smaller brain."""

    def _prepared(self, subjects, *options):
        names = ("flip", "contrast", "brightness", "gamma", "bias", "noise", "thick")
        still = [f"augmentation.{name}=0" for name in names]
        recipe = small(*only(l1=1), *still, "schedule.batch_size=8", *options)
        return new_synthesis(recipe).prepare(source_of(subjects, recipe), 0)[:2]

    def test_thick_slices_are_shown_only(self, subjects):
        plain, _ = self._prepared(subjects)
        batch, shown = self._prepared(subjects, "augmentation.thick_exam=6")
        assert torch.equal(batch.images, plain.images)
        assert not torch.equal(shown, plain.images)

    def test_a_brain_that_is_cut_is_the_one_to_make(self, subjects):
        plain, _ = self._prepared(subjects)
        batch, shown = self._prepared(subjects, "augmentation.mask_error=4")
        lost = (plain.brain > 0) & (batch.brain == 0)
        assert lost.any()
        assert (batch.images[lost.expand_as(shown)] == BACKGROUND).all()
        inside = (batch.brain > 0).expand_as(shown)
        assert torch.equal(shown[inside], plain.images[inside])

    def test_an_error_below_zero_is_refused(self):
        with pytest.raises(UsageError, match="must be negative"):
            small("augmentation.mask_error=-1")
