from __future__ import annotations

import csv
import itertools
import math
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from app.core.errors import CaseError, UsageError
from app.networks.unet import Segmenter2d
from app.registry.lineage import TrainingRecord
from app.training import losses, validation
from app.training import trainer as loop
from app.training.checkpoint import BEST, LAST, load_state
from app.training.data.cache import NORMALIZATION
from app.training.logger import RunLog
from app.training.optimization import learning_rate
from app.training.tasks.synthesis import SynthesisTask
from app.training.trainer import TrainingPaths, train
from tests.networks.small_models import save_segmenter2d
from tests.training.helpers import quick, small

#: The plain network and its discriminator, one sequence a step.
ADVERSARY = ["network.kind='unet'", "network.widths=[8,16]", "schedule.targets_per_batch=1",
             "losses.feature=0", "losses.cycle=0", "losses.ssim=0"]  # fmt: skip


@pytest.fixture
def paths(training_data, training_cache, tmp_path):
    return TrainingPaths(training_data, tmp_path / "run", training_cache)


def weights_of(run: Path) -> torch.Tensor:
    state = load_state(run / LAST)
    held = [*state.average.values(), *(v for n in state.networks.values() for v in n.values())]
    return torch.cat([v.flatten() for v in held])


def flat(network):
    return torch.cat([p.detach().flatten() for p in network.parameters()])


class TestUpdate:
    """What reaches an optimiser in a run's step."""

    def _updates(self, monkeypatch, paths, recipe):
        """Per update, in order: the gradient's norm and the rate."""
        found = []
        original = loop.new_optimizer

        def note(optimizer, *_):
            (group,) = optimizer.param_groups
            gradients = [p.grad.flatten() for p in group["params"] if p.grad is not None]
            found.append((float(torch.cat(gradients).norm()), group["lr"]))

        def watched(network, recipe):
            optimizer = original(network, recipe)
            optimizer.register_step_pre_hook(note)
            return optimizer

        monkeypatch.setattr(loop, "new_optimizer", watched)
        train(recipe, paths)
        return found

    def test_gradients_are_no_longer_than_the_clip(self, monkeypatch, paths):
        recipe = small(*ADVERSARY, "schedule.steps=1", "optimizer.clip_norm=0.01")
        updates = self._updates(monkeypatch, paths, recipe)
        # Those of untrained networks are longer; they keep their direction and get the length of the clip.
        assert [norm for norm, _ in updates] == pytest.approx([0.01, 0.01], rel=1e-3)

    def test_shorter_ones_stay_as_they_are(self, monkeypatch, paths):
        recipe = small(*ADVERSARY, "schedule.steps=1", "optimizer.clip_norm=1e6")
        assert all(0.01 < norm < 1e5 for norm, _ in self._updates(monkeypatch, paths, recipe))

    def test_the_discriminators_rate_is_a_multiple_of_the_generators(self, monkeypatch, paths):
        recipe = small(*ADVERSARY, "schedule.steps=2", "optimizer.discriminator_rate=0.25")
        updates = self._updates(monkeypatch, paths, recipe)
        asked = [learning_rate(recipe.optimizer, recipe.schedule, progress) for progress in (0, 0.5)]
        assert asked[0] != asked[1]
        expected = [rate * share for rate in asked for share in (1, 0.25)]
        assert [rate for _, rate in updates] == pytest.approx(expected)


class TestAverage:
    def test_it_follows_the_generator_soon_at_first_then_by_the_recipe(self, monkeypatch, paths):
        ends = []
        original = loop._Run._step

        def watched(run, progress):
            if not ends:
                ends.append((flat(run.task.generator), flat(run.task.average)))
            losses = original(run, progress)
            ends.append((flat(run.task.generator), flat(run.task.average)))
            return losses

        monkeypatch.setattr(loop._Run, "_step", watched)
        train(quick("schedule.steps=3", "schedule.warmup=0", "optimizer.ema=0.15"), paths)
        learner, expected = ends[0]
        assert torch.equal(learner, expected)
        # (1 + step) / (10 + step), until the recipe's share is less.
        for keep, (learner, average) in zip((1 / 10, 0.15, 0.15), ends[1:], strict=True):
            before, expected = expected, keep * expected + (1 - keep) * learner
            assert torch.allclose(average, expected, atol=1e-6)
            assert not torch.allclose(average, learner, atol=1e-6)
            assert not torch.allclose(average, before, atol=1e-6)


class TestRun:
    def test_a_resumed_run_equals_an_unbroken_one(self, paths, tmp_path, monkeypatch):
        recipe = small("schedule.steps=4", "schedule.epoch_steps=2", "schedule.targets_per_batch=1")
        train(recipe, paths)
        broken = replace(paths, run=tmp_path / "broken")
        steps = []
        original = loop._Run._step

        def stop_in_the_middle(self, progress):
            losses = original(self, progress)
            steps.append(self.state.step)
            if self.state.step == 3:
                signal.raise_signal(signal.SIGTERM)
            return losses

        monkeypatch.setattr(loop._Run, "_step", stop_in_the_middle)
        outcome = train(recipe, broken)
        assert outcome.signal_number == signal.SIGTERM
        assert load_state(broken.run / LAST).step == 3
        torch.rand(7)  # Whatever happens in between.
        assert train(recipe, broken, resume=True).signal_number is None
        assert steps == [1, 2, 3, 4]
        assert torch.equal(weights_of(paths.run), weights_of(broken.run))

    def test_the_seed_decides(self, paths, tmp_path):
        ends = []
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            run = replace(paths, run=tmp_path / name)
            train(quick("schedule.steps=2", f"seed={seed}"), run)
            ends.append(weights_of(run.run))
        assert torch.equal(ends[0], ends[1])
        assert not torch.equal(ends[0], ends[2])

    def test_it_validates_in_three_dimensions_and_keeps_the_best(self, paths, monkeypatch):
        recipe = small(
            *ADVERSARY, "schedule.steps=2", "schedule.epoch_steps=1", "schedule.validate_every=1", "data.held_out=1"
        )
        networks, build = [], validation.candidate_model
        monkeypatch.setattr(validation, "candidate_model", lambda n, *rest: networks.append(n) or build(n, *rest))
        state = train(recipe, paths).state
        # What is exported, not what is still moving.
        judged = networks[-1].state_dict()
        assert all(torch.equal(judged[k], v) for k, v in state.average.items())
        assert not all(torch.equal(judged[k], v) for k, v in state.networks["generator"].items())
        assert len(state.held_out) == 1
        assert not set(state.held_out) & set(state.subjects)
        with (paths.run / "log.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        found = {r["name"]: float(r["value"]) for r in rows if r["step"] == "2"}
        assert {"l1", "discriminator", "images_per_second", "val_official_healthy", "val_ssim_brain"} <= set(found)
        assert (paths.run / "samples" / "step-0000002.png").stat().st_size > 500
        best = load_state(paths.run / BEST)
        scores = [float(r["value"]) for r in rows if r["name"] == "val_ssim_brain"]
        assert len(scores) == 2
        assert state.best == pytest.approx(max(scores), abs=1e-5)
        assert best.step == 1 + int(np.argmax(scores))

    def test_a_budget_of_time_ends_it_annealed(self, paths, monkeypatch):
        rates, seconds = [], itertools.count(step=0.2)
        original = loop.learning_rate

        def spy(*arguments):
            rates.append(original(*arguments))
            return rates[-1]

        monkeypatch.setattr(loop, "learning_rate", spy)
        recipe = quick("schedule.steps=0", "schedule.budget_minutes=0.05")
        state = train(recipe, paths, clock=lambda: next(seconds)).state
        assert state.minutes >= 0.05
        assert state.step > 5
        assert rates[-1] < 0.2 * max(rates)

    def test_gradients_that_are_not_finite_are_skipped_then_end_it(self, paths, monkeypatch, caplog):
        monkeypatch.setattr(loop, "MAX_SKIPPED", 2)
        monkeypatch.setattr("app.training.losses.l1_loss", lambda made, *_: made.sum() * float("nan"))
        with pytest.raises(CaseError, match=r"2 updates of the generator in a row.*start again"):
            train(quick("schedule.steps=5"), paths)
        assert "the gradient of the generator is not finite" in caplog.text

    def test_what_broke_is_not_saved_over_what_can_be_resumed(self, paths, monkeypatch):
        monkeypatch.setattr(loop, "MAX_SKIPPED", 3)
        steps = ["schedule.steps=9", "schedule.epoch_steps=2"]
        sound, step, now = losses.l1_loss, SynthesisTask.step, [0]

        def numbered(self, source, number, *others):
            now[0] = number
            return step(self, source, number, *others)

        def sound_thrice(made, *others):
            return sound(made, *others) if now[0] < 3 else made.sum() * float("nan")

        monkeypatch.setattr(SynthesisTask, "step", numbered)
        monkeypatch.setattr(losses, "l1_loss", sound_thrice)
        with pytest.raises(CaseError, match="go on from its last checkpoint with --resume"):
            train(quick(*steps), paths)
        assert load_state(paths.run / LAST).step == 2
        monkeypatch.setattr(losses, "l1_loss", sound)
        assert train(quick(*steps, "optimizer.learning_rate=1e-4"), paths, resume=True).state.step == 9

    @pytest.mark.parametrize("weight,saved", [(1e30, True), (math.inf, False)])
    def test_weights_that_broke_are_no_place_to_go_on_from(self, paths, monkeypatch, caplog, weight, saved):
        monkeypatch.setattr(loop, "MAX_SKIPPED", 2)
        monkeypatch.setattr(loop._Run, "_average", lambda run: next(run.task.generator.parameters()).data.fill_(weight))
        with pytest.raises(CaseError, match="start again, with another --run"):
            train(quick("schedule.steps=9", "schedule.epoch_steps=1"), paths)
        # Huge ones are finite still: nobody knows yet that they are useless.
        assert (paths.run / LAST).exists() == saved
        assert ("weights are not finite" in caplog.text) != saved

    def test_memory_that_runs_out_halves_the_batch(self, paths, monkeypatch, caplog):
        original = SynthesisTask.step

        def greedy(self, source, step, pieces, update):
            if pieces < 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(self, source, step, pieces, update)

        monkeypatch.setattr(SynthesisTask, "step", greedy)
        assert train(quick("schedule.steps=1"), paths).state.pieces == 2
        assert "Memory ran out" in caplog.text

    def test_a_discriminator_that_is_not_finite_ends_it_too(self, paths, monkeypatch):
        monkeypatch.setattr(loop, "MAX_SKIPPED", 2)
        original = SynthesisTask._discriminate

        def spoilt(self, *arguments):
            original(self, *arguments)
            next(self.discriminator.parameters()).grad[:] = float("nan")

        monkeypatch.setattr(SynthesisTask, "_discriminate", spoilt)
        with pytest.raises(CaseError, match="updates of the discriminator in a row"):
            train(small(*ADVERSARY, "schedule.steps=5"), paths)

    def test_memory_that_runs_out_after_an_update_is_not_tried_again(self, paths, monkeypatch):
        def greedy(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(SynthesisTask, "_discriminate", greedy)
        with pytest.raises(CaseError, match="memory ran out while weights were updated"):
            train(small(*ADVERSARY, "schedule.steps=1"), paths)

    def test_a_long_epoch_is_saved_on_the_way(self, paths, monkeypatch):
        saved = []
        monkeypatch.setattr(loop._Run, "_save", lambda run, name: saved.append((run.state.step, name)))
        # Every look at the clock is a minute later.
        minutes = itertools.count(step=60.0)
        train(quick("schedule.steps=20"), paths, clock=lambda: next(minutes))
        assert saved[-1] == (20, LAST)
        assert 2 <= len(saved) < 20

    def test_what_a_killed_run_logged_is_taken_back(self, paths):
        train(quick("schedule.steps=1"), paths)
        log = (paths.run / "log.csv").read_text()
        (paths.run / "log.csv").write_text(log + "2,0.100,l1,99\n1,0.2")
        train(quick("schedule.steps=2"), paths, resume=True)
        text = (paths.run / "log.csv").read_text()
        assert text.startswith(log)
        assert "99" not in [r["value"] for r in csv.DictReader(text.splitlines())]
        assert {r["step"] for r in csv.DictReader(text.splitlines())} == {"1", "2"}

    def test_memory_for_not_even_one_slice(self, paths, monkeypatch):
        def never(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        closed, close = [], RunLog.close
        monkeypatch.setattr(RunLog, "close", lambda self: (closed.append(self), close(self)))
        monkeypatch.setattr(SynthesisTask, "step", never)
        with pytest.raises(CaseError, match="not even one slice"):
            train(quick("schedule.steps=1"), paths)
        # Else its thread would write to the folder later on.
        assert len(closed) == 1

    def test_tversky_needs_a_segmenter_and_takes_one(self, paths, tmp_path):
        recipe = quick("schedule.steps=1", "losses.tversky=5", "data.tumour_share=1.0")
        with pytest.raises(UsageError, match="needs a trained segmenter"):
            train(recipe, paths)
        entry = save_segmenter2d(tmp_path / "w", "seg", (8, 8, 8, 8), Segmenter2d((8, 8, 8, 8)).state_dict(),
                               NORMALIZATION, recipe.data.canvas)  # fmt: skip
        with pytest.raises(UsageError, match=r"learned another scale of intensities \(volume\) than .* \(range\)"):
            scaled = quick("losses.tversky=5", "normalization.scheme='range'", "output.contrast=0", "schedule.steps=1")
            train(scaled, replace(paths, run=tmp_path / "r", cache=None), segmenter=entry)
        assert train(recipe, paths, segmenter=entry).state.step == 1
        seen = TrainingRecord(model="other", subjects=("z",))
        other = save_segmenter2d(tmp_path / "w", "other", (8, 8, 8, 8), Segmenter2d((8, 8, 8, 8)).state_dict(),
                                 NORMALIZATION, recipe.data.canvas, training=seen)  # fmt: skip
        longer = quick("schedule.steps=2", "losses.tversky=5", "data.tumour_share=1.0")
        with pytest.raises(UsageError, match="was taught by another segmenter than 'other' \\('seg'\\)"):
            train(longer, paths, resume=True, segmenter=other)
        assert train(longer, paths, resume=True, segmenter=entry).state.teacher.sha256 == entry.sha256
