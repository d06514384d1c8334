from __future__ import annotations

import csv
import fcntl
import itertools
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.distributed.run import get_args_parser

from app.cli import build_parser, main
from app.core.constants import MODALITIES
from app.core.errors import CaseError, ExitCode, UsageError
from app.data.phantom import make_phantom, write_phantom
from app.evaluation.scoring import VolumeScores, find_pairs, score_pair
from app.networks.architectures import UNET_WIDTHS
from app.networks.unet import Segmenter2d
from app.registry.manifest import read_manifest
from app.training import losses
from app.training import trainer as loop
from app.training.checkpoint import BEST, LAST, load_state
from app.training.data.cache import NORMALIZATION, build_cache
from app.training.data.splits import split
from app.training.export import export_run
from app.training.optimization import learning_rate
from app.training.tasks import base as tasks
from app.training.tasks.synthesis import SynthesisTask
from app.training.trainer import TrainingPaths, train
from tests.networks.small_models import record_of, save_segmenter2d, scores_of
from tests.training.helpers import SMALL, small


@pytest.fixture
def paths(training_data, training_cache, tmp_path):
    return TrainingPaths(training_data, tmp_path / "run", training_cache)


def weights_of(run: Path) -> torch.Tensor:
    state = load_state(run / LAST)
    held = [*state.average.values(), *(v for n in state.networks.values() for v in n.values())]
    return torch.cat([v.flatten() for v in held])


class TestSplit:
    def test_a_patient_is_on_one_side_only(self):
        exams = [SimpleNamespace(name=f"BraTS-GLI-{p:05d}-{t:03d}") for p in range(6) for t in range(2)]
        training, kept = split(exams, 2, seed=0)
        assert not {s.name[:15] for s in training} & {n[:15] for n in kept}
        assert len(training) + len(kept) == 12
        assert len(kept) % 2 == 0

    def test_held_out_subjects_are_the_seeds_and_never_trained_on(self, training_data, training_cache):
        subjects = build_cache(training_data, training_cache)
        training, kept = split(subjects, 1, seed=3)
        assert {s.name for s in training} | set(kept) == {"s0", "s1", "s2"}
        assert not {s.name for s in training} & set(kept)
        assert split(subjects, 1, seed=3)[1] == kept
        with pytest.raises(UsageError, match="fewer than two"):
            split(subjects, 2, seed=3)


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
        recipe = small("schedule.steps=1", "schedule.targets=1", "optimizer.clip_norm=0.01")
        updates = self._updates(monkeypatch, paths, recipe)
        # Those of untrained networks are longer; they keep their direction and get the length of the clip.
        assert [norm for norm, _ in updates] == pytest.approx([0.01, 0.01], rel=1e-3)

    def test_shorter_ones_stay_as_they_are(self, monkeypatch, paths):
        recipe = small("schedule.steps=1", "schedule.targets=1", "optimizer.clip_norm=1e6")
        assert all(0.01 < norm < 1e5 for norm, _ in self._updates(monkeypatch, paths, recipe))

    def test_the_discriminators_rate_is_a_multiple_of_the_generators(self, monkeypatch, paths):
        recipe = small("schedule.steps=2", "schedule.targets=1", "optimizer.discriminator_rate=0.25")
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
        train(small("schedule.steps=3", "schedule.targets=1", "schedule.warmup=0", "optimizer.ema=0.15"), paths)
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
        recipe = small("schedule.steps=4", "schedule.epoch_steps=2")
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
            train(small("schedule.steps=2", f"seed={seed}"), run)
            ends.append(weights_of(run.run))
        assert torch.equal(ends[0], ends[1])
        assert not torch.equal(ends[0], ends[2])

    def test_it_validates_in_three_dimensions_and_keeps_the_best(self, paths, monkeypatch):
        recipe = small("schedule.steps=2", "schedule.epoch_steps=1", "schedule.validate_every=1", "data.held_out=1")
        networks, build = [], tasks.candidate_model
        monkeypatch.setattr(tasks, "candidate_model", lambda n, *rest: networks.append(n) or build(n, *rest))
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
        assert {"l1", "judge", "images_per_second", "val_official_healthy", "val_ssim_brain"} <= set(found)
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
        recipe = small("schedule.steps=0", "schedule.budget_minutes=0.05", "schedule.targets=1")
        state = train(recipe, paths, clock=lambda: next(seconds)).state
        assert state.minutes >= 0.05
        assert state.step > 5
        assert rates[-1] < 0.2 * max(rates)

    def test_a_run_is_not_written_over(self, paths):
        recipe = small("schedule.steps=1")
        train(recipe, paths)
        with pytest.raises(UsageError, match="add --resume"):
            train(recipe, paths)
        with pytest.raises(UsageError, match=r"losses\.l1 = 10\.0, not 3\.0"):
            train(small("schedule.steps=1", "losses.l1=3"), paths, resume=True)
        assert train(small("schedule.steps=2"), paths, resume=True).state.step == 2

    @pytest.mark.parametrize("content", [b"", b"not a checkpoint", {"schema": 2}, {"schema": 2, "recipe": {}, "x": 1}])
    def test_a_damaged_checkpoint_is_named(self, paths, content):
        paths.run.mkdir()
        if isinstance(content, dict):
            torch.save(content, paths.run / LAST)
        else:
            (paths.run / LAST).write_bytes(content)
        with pytest.raises(UsageError, match=r"last\.pt is no (whole )?checkpoint"):
            train(small("schedule.steps=1"), paths, resume=True)

    def test_a_checkpoint_executes_nothing(self, paths, tmp_path):
        class Evil:
            def __reduce__(self):
                return (os.mkdir, (str(tmp_path / "evil"),))

        paths.run.mkdir()
        torch.save({"schema": 1, "recipe": Evil()}, paths.run / LAST)
        with pytest.raises(UsageError):
            train(small("schedule.steps=1"), paths, resume=True)
        assert not (tmp_path / "evil").exists()

    def test_gradients_that_are_not_finite_are_skipped_then_end_it(self, paths, monkeypatch, caplog):
        monkeypatch.setattr(loop, "MAX_SKIPPED", 2)
        monkeypatch.setattr("app.training.losses.l1_loss", lambda made, *_: made.sum() * float("nan"))
        with pytest.raises(CaseError, match=r"2 updates of the generator in a row.*start again"):
            train(small("schedule.steps=5"), paths)
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
            train(small(*steps), paths)
        assert load_state(paths.run / LAST).step == 2
        monkeypatch.setattr(losses, "l1_loss", sound)
        assert train(small(*steps, "optimizer.learning_rate=1e-4"), paths, resume=True).state.step == 9

    @pytest.mark.parametrize("weight,saved", [(1e30, True), (math.inf, False)])
    def test_weights_that_broke_are_no_place_to_go_on_from(self, paths, monkeypatch, caplog, weight, saved):
        monkeypatch.setattr(loop, "MAX_SKIPPED", 2)
        monkeypatch.setattr(loop._Run, "_average", lambda run: next(run.task.generator.parameters()).data.fill_(weight))
        with pytest.raises(CaseError, match="start again, with another --run"):
            train(small("schedule.steps=9", "schedule.epoch_steps=1"), paths)
        # Huge ones are finite still: nobody knows yet that they are useless.
        assert (paths.run / LAST).exists() == saved
        assert ("weights are not finite" in caplog.text) != saved

    def test_two_runs_do_not_write_to_one_folder(self, paths):
        paths.run.mkdir(parents=True)
        with (paths.run / ".lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(UsageError, match="another run writes to"):
                train(small("schedule.steps=1"), paths)
        assert train(small("schedule.steps=1"), paths).state.step == 1

    def test_memory_that_runs_out_halves_the_batch(self, paths, monkeypatch, caplog):
        original = SynthesisTask.step

        def greedy(self, source, step, pieces, update):
            if pieces < 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(self, source, step, pieces, update)

        monkeypatch.setattr(SynthesisTask, "step", greedy)
        assert train(small("schedule.steps=1"), paths).state.pieces == 2
        assert "Memory ran out" in caplog.text

    def test_a_judge_that_is_not_finite_ends_it_too(self, paths, monkeypatch):
        monkeypatch.setattr(loop, "MAX_SKIPPED", 2)
        original = SynthesisTask._judge

        def spoilt(self, *arguments):
            original(self, *arguments)
            next(self.discriminator.parameters()).grad[:] = float("nan")

        monkeypatch.setattr(SynthesisTask, "_judge", spoilt)
        with pytest.raises(CaseError, match="updates of the discriminator in a row"):
            train(small("schedule.steps=5"), paths)

    def test_memory_that_runs_out_after_an_update_is_not_tried_again(self, paths, monkeypatch):
        def greedy(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(SynthesisTask, "_judge", greedy)
        with pytest.raises(CaseError, match="memory ran out while weights were updated"):
            train(small("schedule.steps=1"), paths)

    def test_a_long_epoch_is_saved_on_the_way(self, paths, monkeypatch):
        saved = []
        monkeypatch.setattr(loop._Run, "_save", lambda run, name: saved.append((run.state.step, name)))
        # Every look at the clock is a minute later.
        minutes = itertools.count(step=60.0)
        train(small("schedule.steps=20", "schedule.targets=1"), paths, clock=lambda: next(minutes))
        assert saved[-1] == (20, LAST)
        assert 2 <= len(saved) < 20

    def test_what_a_killed_sitting_logged_is_taken_back(self, paths):
        train(small("schedule.steps=1"), paths)
        log = (paths.run / "log.csv").read_text()
        (paths.run / "log.csv").write_text(log + "2,0.100,l1,99\n1,0.2")
        train(small("schedule.steps=2"), paths, resume=True)
        text = (paths.run / "log.csv").read_text()
        assert text.startswith(log)
        assert "99" not in [r["value"] for r in csv.DictReader(text.splitlines())]
        assert {r["step"] for r in csv.DictReader(text.splitlines())} == {"1", "2"}

    def test_a_lower_rate_may_be_set_on_resuming(self, paths):
        train(small("schedule.steps=1"), paths)
        recipe = small("schedule.steps=2", "optimizer.learning_rate=1e-5")
        assert train(recipe, paths, resume=True).state.step == 2

    def test_subjects_trained_on_do_not_validate(self, paths):
        recipe = small("schedule.steps=1", "schedule.validate_every=1")
        with pytest.raises(UsageError, match="is trained on"):
            train(recipe, replace(paths, validation=paths.data))

    def test_a_folder_to_validate_on_is_looked_at_before_the_first_step(self, paths, tmp_path, caplog):
        recipe = small("schedule.steps=1", "schedule.validate_every=1")
        write_phantom(make_phantom((40, 44, 36), 9), tmp_path / "lacking", "x", leave_out=("t1c",))
        for folder, message in ((tmp_path / "nope", "does not exist"), (tmp_path / "lacking", "no complete subject")):
            with pytest.raises(UsageError, match=message):
                train(recipe, replace(paths, validation=folder))
            assert not paths.run.exists()
        train(recipe, paths)
        assert "the run is not validated" in caplog.text

    def test_who_asks_for_validation_gets_it_at_the_end(self, paths, tmp_path):
        write_phantom(make_phantom((40, 44, 36), 9), tmp_path / "unseen", "b")
        recipe = small("schedule.steps=1", "schedule.validate_every=0")
        with pytest.raises(UsageError, match="nope does not exist"):
            train(recipe, replace(paths, validation=tmp_path / "nope"))
        state = train(recipe, replace(paths, validation=tmp_path / "unseen")).state
        assert state.validated == ["b"]
        assert (paths.run / "best.pt").exists()

    def test_a_best_checkpoint_of_an_earlier_run_is_not_taken_for_this_ones(self, paths):
        paths.run.mkdir()
        (paths.run / "best.pt").touch()
        with pytest.raises(UsageError, match=r"best\.pt of an earlier run"):
            train(small("schedule.steps=1"), paths)

    def test_what_the_start_has_seen_is_not_validated_on(self, paths, tmp_path, monkeypatch):
        monkeypatch.setattr("app.training.export.to_onnx", lambda *_: b"graph")
        recipe = small("schedule.steps=1", "data.held_out=1")
        held_out = train(recipe, paths).state.held_out[0]
        weights = tmp_path / "w"
        export_run(paths.run, weights, "m", data=paths.data, cache=paths.cache, force=True)
        entry = read_manifest(weights).entry("m")
        again = replace(paths, run=tmp_path / "again")
        assert train(recipe, again, start=entry).state.validated == [held_out]
        other = next(s for s in range(1, 20) if split(build_cache(paths.data, paths.cache), 1, s)[1] != [held_out])
        with pytest.raises(UsageError, match="taught the model that the run starts from"):
            train(small("schedule.steps=1", "data.held_out=1", f"seed={other}"), replace(paths, run=tmp_path / "c"),
                  start=entry)  # fmt: skip

    def test_incomplete_subjects_do_not_take_the_places_of_others(self, paths, tmp_path):
        write_phantom(make_phantom((40, 44, 36), 8), tmp_path / "unseen", "a", leave_out=("t1c",))
        write_phantom(make_phantom((40, 44, 36), 9), tmp_path / "unseen", "b")
        recipe = small("schedule.steps=1", "schedule.validate_every=1", "schedule.validation_subjects=1")
        validated = replace(paths, validation=tmp_path / "unseen")
        assert train(recipe, validated).state.validated == ["b"]
        with pytest.raises(UsageError, match=r"was validated on other subjects \(b\)"):
            train(recipe, paths, resume=True)
        longer = small("schedule.steps=2", "schedule.validate_every=1", "schedule.validation_subjects=1")
        assert train(longer, validated, resume=True).state.step == 2

    def test_memory_for_not_even_one_slice(self, paths, monkeypatch):
        def never(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(SynthesisTask, "step", never)
        with pytest.raises(CaseError, match="not even one slice"):
            train(small("schedule.steps=1"), paths)

    def test_tversky_needs_a_segmenter_and_takes_one(self, paths, tmp_path):
        recipe = small("schedule.steps=1", "losses.tversky=5", "data.tumour_share=1.0")
        with pytest.raises(UsageError, match="needs a trained segmenter"):
            train(recipe, paths)
        entry = save_segmenter2d(tmp_path / "w", "seg", (8, 8, 8, 8), Segmenter2d((8, 8, 8, 8)).state_dict(),
                               NORMALIZATION, recipe.data.canvas)  # fmt: skip
        assert train(recipe, paths, segmenter=entry).state.step == 1
        other = save_segmenter2d(tmp_path / "w", "other", (8, 8, 8, 8), Segmenter2d((8, 8, 8, 8)).state_dict(),
                               NORMALIZATION, recipe.data.canvas, {"training": {"names": ["z"]}})  # fmt: skip
        longer = small("schedule.steps=2", "losses.tversky=5", "data.tumour_share=1.0")
        with pytest.raises(UsageError, match="was taught by another segmenter than 'other' \\('seg'\\)"):
            train(longer, paths, resume=True, segmenter=other)
        assert train(longer, paths, resume=True, segmenter=entry).state.teacher["sha256"] == entry.sha256

    def test_what_the_teacher_was_trained_on_is_not_scored_on(self, trained, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("app.training.export.to_onnx", lambda *_: b"graph")
        seen = {"training": {"names": ["phantom-7"]}}
        save_segmenter2d(tmp_path / "w", "segmenter", UNET_WIDTHS, Segmenter2d().state_dict(), NORMALIZATION,
                       small().data.canvas, seen)  # fmt: skip
        code = main(["train", "smoke", "--data", str(trained / "data"), "--run", str(tmp_path / "run"), "--set",
                     "schedule.steps=1", "--set", "schedule.validate_every=0", "--set", "data.views=['axial']",
                     "--weights", str(tmp_path / "w"), "--cache", str(trained / "run" / "cache")])  # fmt: skip
        assert code == ExitCode.OK
        assert f"--cache {trained / 'run' / 'cache'}" in capsys.readouterr().err
        export = ["export", str(tmp_path / "run"), "--data", str(trained / "data"), "--weights", str(tmp_path / "w"),
                  "--model", "mine", "--cache", str(trained / "run" / "cache")]  # fmt: skip
        assert main([*export, "--score-on", str(trained / "unseen")]) == ExitCode.USAGE
        assert "phantom-7" in capsys.readouterr().err
        assert main([*export, "--force"]) == ExitCode.OK
        assert record_of(tmp_path / "w", "mine").teacher == read_manifest(tmp_path / "w").entry("segmenter").sha256

    def test_the_readmes_command_for_many_gpus_is_one(self):
        readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
        (line,) = re.findall(r"^ +torchrun (.+)$", readme, re.MULTILINE)
        given = get_args_parser().parse_args(line.split())
        assert (given.nproc_per_node, given.module, given.training_script) == ("8", True, "app")
        options = build_parser().parse_args(given.training_script_args)
        assert (options.recipe, options.run) == ("r8", Path("runs/r8"))

    def test_two_processes_share_the_work(self, training_data, tmp_path):
        changes = [*SMALL, "losses.tversky=0", "schedule.steps=2", "schedule.targets=1", "network.confidence='bounded'"]
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
             Path(__file__).parent / "torchrun_worker.py", training_data, tmp_path / "run", "smoke", *changes],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[:6000]
        assert load_state(tmp_path / "run" / LAST).step == 2


#: The plain network, whose ONNX is written in a moment; `make train-smoke` goes the same way with the generator.
PLAIN = [word for change in ("network.kind='unet'", "schedule.validate_every=0", "losses.tversky=0", "losses.feature=0",
                             "losses.cycle=0", "losses.adversarial=0", "losses.classification=0")
         for word in ("--set", change)]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    assert main(["phantom", "--output", str(folder / "data"), "--count", "2"]) == ExitCode.OK
    assert main(["phantom", "--output", str(folder / "unseen"), "--count", "1", "--seed", "7"]) == ExitCode.OK
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    code = main(["train", "smoke", "--data", str(folder / "data"), "--run", str(folder / "run"), *PLAIN, "--set",
                 "schedule.steps=2", "--set", "data.views=['axial']", "--device", "cpu"])  # fmt: skip
    assert code == ExitCode.OK
    return folder


class TestCommands:
    """From data to a model that completes an exam, as a user does it."""

    def _export(self, folder, *more: str) -> int:
        return main(["export", str(folder / "run"), "--data", str(folder / "data"), "--weights", str(folder / "w"),
                     "--device", "cpu", "--model", "mine", *more])  # fmt: skip

    def test_export_needs_scores_and_then_completes_an_exam(self, trained, tmp_path, capsys):
        assert self._export(trained) == ExitCode.USAGE
        assert "only with scores" in capsys.readouterr().err
        assert self._export(trained, "--score-on", str(trained / "data")) == ExitCode.USAGE
        assert "was trained on" in capsys.readouterr().err
        assert self._export(trained, "--score-on", str(trained / "unseen"), "--contrast", "0.25") == ExitCode.OK
        entry = read_manifest(trained / "w").entry("mine")
        assert entry.spec.contrast == 0.25
        assert {"torch", "onnx", "intensity"} <= set(entry.files)
        assert scores_of(tmp_path / "w", "mine").subjects == ("phantom-7",)
        assert {"t1c", "t1n", "t2f", "t2w"} == set(scores_of(tmp_path / "w", "mine").by_target)
        assert record_of(tmp_path / "w", "mine").recipe["network"]["preset"] == "compact"
        assert len(record_of(tmp_path / "w", "mine").subjects) == 2
        # What was scored in memory is what a user's run scores from files.
        main(["dropout", "--each", "--input", str(trained / "unseen"), "--output", str(tmp_path / "dropped")])
        code = main(["synthesize", "--input", str(tmp_path / "dropped"), "--output", str(tmp_path / "made"),
                     "--weights", str(trained / "w"), "--on-error", "stop", "--device", "cpu"])  # fmt: skip
        assert code == ExitCode.OK
        pairs, _ = find_pairs(tmp_path / "made", trained / "unseen")
        mean = np.mean([score_pair(p).values["ssim_brain"] for p in pairs])
        assert mean == pytest.approx(scores_of(tmp_path / "w", "mine").mean["ssim_brain"], abs=2e-3)

    def test_a_worse_model_is_refused_unless_forced(self, trained, tmp_path, capsys, monkeypatch):
        similarity = [0.6]

        def scored(*_):
            values = {"official_healthy": 0.9, "official_tumour": 0.99, "ssim_brain": similarity[0]}
            return [VolumeScores("phantom-7", m, values) for m in MODALITIES]

        monkeypatch.setattr("app.training.export.score_missing_sequences", scored)
        monkeypatch.setattr("app.training.export.to_onnx", lambda *_: b"graph")
        arguments = ("--score-on", str(trained / "unseen"), "--weights", str(tmp_path / "w"))
        assert self._export(trained, *arguments) == ExitCode.OK
        before = (tmp_path / "w" / "manifest.json").read_bytes()
        similarity[0] = 0.599
        assert self._export(trained, *arguments) == ExitCode.USAGE
        message = capsys.readouterr().err
        assert "is worse than 'mine', which it would replace, in ssim_brain 0.5990 (before 0.6000)" in message
        assert "(not in official_healthy 0.9000 (before 0.9000), official_tumour" in message
        assert (tmp_path / "w" / "manifest.json").read_bytes() == before
        # What is a hair behind says so with enough digits to see it.
        similarity[0] = 0.599999
        assert self._export(trained, *arguments) == ExitCode.USAGE
        assert "in ssim_brain 0.599999 (before 0.600000)" in capsys.readouterr().err
        similarity[0] = 0.599
        assert self._export(trained, *arguments, "--force") == ExitCode.OK
        # Equal is not worse.
        assert self._export(trained, *arguments) == ExitCode.OK

        def broken(*_):
            raise UsageError("no ONNX today")

        # A model whose ONNX cannot be made takes nobody's place.
        before = {p.name: p.read_bytes() for p in (tmp_path / "w").iterdir()}
        monkeypatch.setattr("app.training.export.to_onnx", broken)
        assert self._export(trained, *arguments) == ExitCode.USAGE
        assert {p.name: p.read_bytes() for p in (tmp_path / "w").iterdir()} == before

    def test_the_model_that_would_lose_its_place_is_scored_too(self, trained, weights_dir, tmp_path):
        shutil.copytree(weights_dir, tmp_path / "w")
        code = self._export(
            trained, "--weights", str(tmp_path / "w"), "--make-default", "--score-on", str(trained / "unseen")
        )
        # Two steps of training do not beat the regression, which is the default there.
        assert code == ExitCode.USAGE
        assert "mine" not in read_manifest(tmp_path / "w").entries

    def test_the_segmenter_is_trained_exported_and_not_run_as_a_model(self, trained, tmp_path, capsys):
        code = main(["train", "segmenter", "--data", str(trained / "data"), "--run", str(tmp_path / "seg"), "--set",
                     "schedule.steps=1", "--set", "schedule.batch_size=2", "--budget-minutes", "5", "--set",
                     "data.min_brain_pixels=500", "--set", "data.views=['axial']",
                     "--cache", str(trained / "run" / "cache")])  # fmt: skip
        assert code == ExitCode.OK
        export = ["export", str(tmp_path / "seg"), "--data", str(trained / "data"), "--weights", str(tmp_path / "w"),
                  "--model", "segmenter"]  # fmt: skip
        assert main([*export, "--score-on", str(trained / "unseen")]) == ExitCode.OK
        assert main(export) == ExitCode.USAGE
        assert "only with scores" in capsys.readouterr().err
        path = tmp_path / "w" / "manifest.json"
        path.write_text(re.sub(r'"dice_(..)": [0-9.]+', r'"dice_\1": 0.99', path.read_text()))
        assert main([*export, "--score-on", str(trained / "unseen")]) == ExitCode.USAGE
        assert "is worse than 'segmenter'" in capsys.readouterr().err
        manifest = read_manifest(tmp_path / "w")
        assert manifest.default is None
        assert "dice_WT" in scores_of(tmp_path / "w", "segmenter").mean
        write_phantom(make_phantom((40, 44, 36)), tmp_path / "in", "new", leave_out=("t1n",))
        code = main(["synthesize", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--weights",
                     str(tmp_path / "w"), "--model", "segmenter"])  # fmt: skip
        assert code == ExitCode.WEIGHTS
        assert "makes no sequence" in capsys.readouterr().err
        assert main(["info", "--weights", str(tmp_path / "w")]) == ExitCode.OK
        assert "segmenter: segmenter" in capsys.readouterr().out

    def test_a_start_from_another_model(self, trained, tmp_path, capsys):
        if "mine" not in (read_manifest(trained / "w").entries if (trained / "w").exists() else {}):
            assert self._export(trained, "--force") == ExitCode.OK
        code = main(["train", "smoke", "--data", str(trained / "data"), "--run", str(tmp_path / "next"), *PLAIN,
                     "--set", "schedule.steps=1", "--start", "mine", "--weights", str(trained / "w")])  # fmt: skip
        assert code == ExitCode.OK
        origin = load_state(tmp_path / "next" / LAST).origin
        assert origin["model"] == "mine"
        assert origin["training"]["steps"] == 2

    def test_an_unknown_recipe_or_key(self, tmp_path, capsys):
        arguments = ["--data", str(tmp_path), "--run", str(tmp_path / "run")]
        assert main(["train", "r9", *arguments]) == ExitCode.USAGE
        assert "r8" in capsys.readouterr().err
        assert main(["train", "r1", *arguments, "--set", "loses.l1=1"]) == ExitCode.USAGE
        assert "did you mean 'losses'" in capsys.readouterr().err
