from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from app.cli import main
from app.core.constants import MODALITIES, TUMOUR_SEGMENTER
from app.core.errors import CaseError, ExitCode, UsageError, WeightsError
from app.data.phantom import make_phantom, write_phantom
from app.evaluation.scoring import VolumeScores
from app.inference.synthesizer import Synthesizer
from app.networks.architectures import Segmenter3dConfig
from app.networks.refiner import Refiner
from app.networks.unet import Segmenter2d
from app.networks.unet3d import Segmenter3d
from app.registry.checkpoints import save_network
from app.registry.lineage import TrainingRecord
from app.registry.manifest import change_spec, read_manifest
from app.registry.spec import Segmenter3dSpec
from app.training import losses as L
from app.training import trainer as loop
from app.training import validation
from app.training.checkpoint import BEST, LAST, load_state
from app.training.config import load_recipe
from app.training.data.cache import NORMALIZATION, build_cache
from app.training.data.first_stage import StageOne
from app.training.data.patches import PatchSampler, PatchSource
from app.training.data.sections import SliceData
from app.training.export import export_run
from app.training.tasks.base import masked
from app.training.tasks.refinement import NetworkRecipe, RefinementTask, degrade, refiner_config
from app.training.trainer import TrainingPaths, train
from tests.networks.small_models import record_of, save_refiner, save_segmenter2d
from tests.training.helpers import changed, replaced_weights

SMALL = ["data.patch=[16,16,32]", "losses.dice=0", "losses.l1=1", "schedule.validate_every=0", "schedule.epoch_steps=0",
         "schedule.budget_minutes=0", "schedule.precision='fp32'"]  # fmt: skip


def small(*changes: str):
    return load_recipe("refiner", [*SMALL, "schedule.steps=1", *changes])


@pytest.fixture(scope="session")
def data(training_data):
    return training_data


@pytest.fixture(scope="session")
def cache(stage_one_cache):
    return stage_one_cache


@pytest.fixture
def paths(data, cache, tmp_path):
    return TrainingPaths(data, tmp_path / "run", cache)


def source_of(data, cache, first, recipe) -> PatchSource:
    sampler = PatchSampler(build_cache(data, cache), recipe.data, -1.0, extra_channels=StageOne(first, "cpu"))
    return PatchSource(sampler, recipe.schedule.batch_size)


class TestDegrade:
    def setup_method(self):
        random = torch.Generator().manual_seed(0)
        self.brain = torch.zeros(2, 1, 16, 16, 16)
        self.brain[:, :, 2:14, 2:14, 2:14] = 1
        self.stage = masked(torch.randn(2, 4, 16, 16, 16, generator=random), self.brain)
        self.off = NetworkRecipe(blur=0, drift=0, contrast=0, noise=0)

    def _made(self, recipe):
        return degrade(self.stage, self.brain, recipe, np.random.default_rng(3))

    def test_nothing_asked_changes_nothing(self):
        assert torch.equal(self._made(self.off), self.stage)

    @pytest.mark.parametrize("change", [{"blur": 1.0}, {"drift": 0.5}, {"contrast": 0.5}, {"noise": 0.5}])
    def test_each_part_changes_the_brain_alone_and_by_the_seed(self, change):
        recipe = changed(self.off, **change)
        made = self._made(recipe)
        inside = self.brain.expand_as(made) > 0
        assert (made[~inside] == -1).all()
        assert not torch.allclose(made[inside], self.stage[inside], atol=1e-3)
        assert torch.equal(made, self._made(recipe))
        assert not torch.equal(made, degrade(self.stage, self.brain, recipe, np.random.default_rng(4)))

    def test_a_blur_takes_contrast_and_lets_no_background_in(self):
        recipe = changed(self.off, blur=1.0)
        inside = self.brain.expand_as(self.stage) > 0
        assert self._made(recipe)[inside].std() < 0.97 * self.stage[inside].std()
        self.stage = masked(torch.full_like(self.stage, 2.0), self.brain)
        assert torch.allclose(self._made(recipe)[inside], torch.tensor(2.0), atol=1e-4)


class TestTask:
    def test_it_learns_one_batch_by_heart_and_starts_where_the_first_stage_ended(self, data, cache, first):
        recipe = small("refinement.blur=0", "refinement.drift=0", "refinement.contrast=0", "refinement.noise=0")
        torch.manual_seed(0)
        task = RefinementTask(recipe, torch.device("cpu"))
        source = source_of(data, cache, first, recipe)
        patches, _ = source.at(0)
        optimizer = torch.optim.AdamW(task.refiner.parameters(), lr=3e-3)
        losses = [task.step(source, 0, 1, lambda _: optimizer.step()) for _ in range(15)]
        errors = [
            float(L.l1_loss(patches.extra_channels[:, t : t + 1], patches.images[:, t : t + 1], patches.brain))
            for t in range(4)
        ]
        assert float(losses[0]["l1"]) in [pytest.approx(error, rel=1e-4) for error in errors]
        assert losses[-1]["l1"] < 0.75 * losses[0]["l1"]
        assert losses[-1]["ssim"] < losses[0]["ssim"]

    def test_every_loss_is_there_and_the_segmenter_stays(self, data, cache, first):
        recipe = small("losses.dice=1", "data.tumour_share=1.0")
        torch.manual_seed(0)
        teacher = Segmenter3d((8, 8)).requires_grad_(False).eval()
        before = {k: v.clone() for k, v in teacher.state_dict().items()}
        task = RefinementTask(recipe, torch.device("cpu"), teacher)
        # The zero start of the last convolution hides all before it from a first gradient.
        torch.nn.init.normal_(task.refiner.head.weight, std=0.1)
        losses = task.step(source_of(data, cache, first, recipe), 0, 1, lambda _: True)
        assert set(losses) == {"l1", "ssim", "dice"}
        assert all(torch.isfinite(v) for v in losses.values())
        assert 0 < float(losses["dice"]) < 1
        moved = [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in task.refiner.parameters()]
        # The attention to what is made, or lacks, has nothing to learn from one batch.
        assert np.mean(moved) > 0.3
        assert all(torch.equal(before[k], v) for k, v in task.segmenter.state_dict().items())

    def test_the_segmenter_sees_the_result_among_the_real_sequences(self, data, cache, first):
        # Equation 7: Dice of the 3D segmenter's answer to the four sequences, the synthesised one among them.
        recipe, seen = small("losses.dice=1", "data.tumour_share=1.0", "augmentation.flip=0"), []
        teacher = Segmenter3d((8, 8)).requires_grad_(False).eval()
        task = RefinementTask(recipe, torch.device("cpu"), teacher)
        task.segmenter.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        source = source_of(data, cache, first, recipe)
        losses = task.step(source, 0, 1, lambda _: True)
        patches, _ = source.at(0)
        real = [bool(torch.equal(seen[0][:, i], patches.images[:, i])) for i in range(4)]
        assert real.count(False) == 1
        with torch.no_grad():
            expected = L.dice_loss(teacher(seen[0]), patches.labels)
        assert float(losses["dice"]) == pytest.approx(float(expected), abs=1e-5)

    def test_dice_alone_teaches(self, data, cache, first):
        recipe = small("losses.dice=1", "losses.l1=0", "losses.ssim=0", "data.tumour_share=1.0")
        task = RefinementTask(recipe, torch.device("cpu"), Segmenter3d((8, 8)).requires_grad_(False).eval())
        losses = task.step(source_of(data, cache, first, recipe), 0, 1, lambda _: True)
        assert set(losses) == {"dice"}
        assert task.refiner.head.weight.grad.abs().sum() > 0

    def test_subjects_without_segmentation_teach_no_tumours(self, data, cache, first):
        recipe = small("losses.dice=1")
        task = RefinementTask(recipe, torch.device("cpu"), Segmenter3d((8, 8)).requires_grad_(False).eval())
        source = source_of(data, cache, first, recipe)
        draw = source.at

        def unlabelled(step):
            patches, random = draw(step)
            return replace(patches, labelled=torch.zeros_like(patches.labelled)), random

        source.at = unlabelled
        assert set(task.step(source, 0, 1, lambda _: True)) == {"l1", "ssim"}

    def test_what_must_be_made_is_not_augmented_and_the_first_stage_is_made_worse(
        self, data, cache, first, monkeypatch
    ):
        recipe, seen, truths = small("schedule.targets_per_batch=4", "augmentation.flip=0"), [], []
        task = RefinementTask(recipe, torch.device("cpu"))
        forward = task.refiner.forward
        monkeypatch.setattr(task.refiner, "forward", lambda *a: seen.append(a) or forward(*a))
        monkeypatch.setattr(L, "l1_loss", lambda made, truth, _: truths.append(truth) or made.sum() * 0)
        source = source_of(data, cache, first, recipe)
        task.step(source, 0, 1, lambda _: True)
        patches, _ = source.at(0)
        assert torch.equal(torch.cat(truths, dim=1), patches.images)
        for target, (volume, images, index, members) in enumerate(seen):
            assert index.tolist() == [target]
            assert target not in members
            assert not torch.allclose(volume, patches.extra_channels[:, target : target + 1])
            assert not torch.allclose(images, patches.images)

    def test_pieces_give_the_gradient_of_the_whole(self, data, cache, first):
        recipe, gradients = small("schedule.batch_size=2", "losses.ssim=0"), []
        for pieces in (1, 2):
            torch.manual_seed(0)
            task = RefinementTask(recipe, torch.device("cpu"))
            torch.nn.init.normal_(task.refiner.head.weight, std=0.1)
            task.step(source_of(data, cache, first, recipe), 0, pieces, lambda _: True)
            held = [p.grad for p in task.refiner.parameters() if p.grad is not None]
            gradients.append(torch.cat([g.flatten() for g in held]))
        assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.9


class TestRun:
    def test_a_resumed_run_equals_an_unbroken_one(self, paths, first, tmp_path, monkeypatch):
        recipe = small("schedule.steps=3")
        train(recipe, paths, stage_one=first)
        broken = replace(paths, run=tmp_path / "broken")
        original = loop._Run._step

        def stop_in_the_middle(self, progress):
            losses = original(self, progress)
            if self.state.step == 2:
                signal.raise_signal(signal.SIGTERM)
            return losses

        monkeypatch.setattr(loop._Run, "_step", stop_in_the_middle)
        assert train(recipe, broken, stage_one=first).signal_number == signal.SIGTERM
        torch.rand(7)  # Whatever happens in between.
        assert train(recipe, broken, resume=True, stage_one=first).state.step == 3
        states = [load_state(p / LAST) for p in (paths.run, broken.run)]
        for a, b in zip(states[0].average.values(), states[1].average.values(), strict=True):
            assert torch.equal(a, b)
        assert (paths.run / "samples" / "step-0000003.png").stat().st_size > 500

    def test_it_validates_what_is_refined_and_keeps_the_best(self, paths, first, monkeypatch):
        models = []

        def scored(model, cases, masks):
            models.append(model)
            return [VolumeScores(c.subject, "t1c", {"ssim_brain": 0.5 - 0.1 * len(models)}) for c in cases]

        monkeypatch.setattr(validation, "score_missing_sequences", scored)
        recipe = small("schedule.steps=2", "schedule.epoch_steps=1", "schedule.validate_every=1", "data.held_out=1")
        state = train(recipe, paths, stage_one=first).state
        assert state.first_stage.model == "tiny"
        assert state.best == pytest.approx(0.4)
        assert load_state(paths.run / BEST).step == 1
        assert [m.name for m in models] == ["tiny+candidate"] * 2
        assert models[0].refiner.window == (16, 16, 32)
        assert models[0].contrast == recipe.output.contrast

    def test_it_needs_a_first_stage_and_goes_on_with_the_same(self, paths, first):
        with pytest.raises(UsageError, match="--stage-one"):
            train(small(), paths)
        train(small(), paths, stage_one=first)
        other = replaced_weights(first)
        with pytest.raises(UsageError, match="refines what 'tiny' made"):
            train(small("schedule.steps=2"), paths, resume=True, stage_one=other)
        turned = replace(first, spec=first.spec.model_copy(update={"flip_average": True}))
        with pytest.raises(UsageError, match=r"-mean'.*-mean\+flip\+step2' now"):
            train(small("schedule.steps=2"), paths, resume=True, stage_one=turned)

    def test_dice_needs_a_3d_segmenter_which_is_not_the_one_that_measures(self, paths, first, tmp_path):
        recipe = small("losses.dice=1", "data.tumour_share=1.0")
        with pytest.raises(UsageError, match=r"losses\.dice needs a trained segmenter"):
            train(recipe, paths, stage_one=first)
        flat = save_segmenter2d(tmp_path / "w", "flat", (8, 8, 8, 8), Segmenter2d((8, 8, 8, 8)).state_dict(),
                                NORMALIZATION, SliceData().canvas)  # fmt: skip
        with pytest.raises(WeightsError, match="not a segmenter3d"):
            train(recipe, paths, stage_one=first, segmenter=flat)
        spec = Segmenter3dSpec(architecture=Segmenter3dConfig((8, 8)), normalization=NORMALIZATION, window=(32, 32, 32))
        state = Segmenter3d((8, 8)).state_dict()
        teacher, judge = (save_network(tmp_path / "w", n, spec, state) for n in ("teacher", TUMOUR_SEGMENTER))
        with pytest.raises(UsageError, match="measures exams and must not teach"):
            train(recipe, paths, stage_one=first, segmenter=judge)
        state = train(recipe, paths, stage_one=first, segmenter=teacher).state
        assert (state.step, state.teacher.name) == (1, "teacher")

    def test_a_start_from_a_generator_makes_no_sense(self, paths, first):
        with pytest.raises(WeightsError, match="is a generator, not a refiner"):
            train(small(), paths, stage_one=first, start=first)

    def test_a_start_from_another_refiner(self, paths, first, tmp_path):
        torch.manual_seed(3)
        other = Refiner(refiner_config(small()))
        entry = save_refiner(tmp_path / "w", "other", other.config, other.state_dict(), NORMALIZATION, (16, 16, 32),
                             0.1, training=TrainingRecord(model="other", subjects=("elsewhere",)))  # fmt: skip
        state = train(small("optimizer.learning_rate=1e-9"), paths, stage_one=first, start=entry).state
        for key, value in other.state_dict().items():
            torch.testing.assert_close(state.networks["refiner"][key], value, atol=1e-6, rtol=0)
        assert (state.first_stage.model, state.started_from.name) == ("tiny", "other")
        with pytest.raises(UsageError, match="another architecture"):
            wide = replace(paths, run=tmp_path / "wide")
            train(small("refinement.width=32"), wide, stage_one=first, start=entry)
        shutil.copytree(first.folder, tmp_path / "all")
        published = export_run(paths.run, tmp_path / "all", "sharp", data=paths.data, cache=paths.cache, force=True)
        assert record_of(tmp_path / "all", "sharp").started_from == entry.sha256
        assert published.spec.first_stage == state.first_stage
        write_phantom(make_phantom((40, 44, 36), 9), tmp_path / "unseen", "elsewhere")
        with pytest.raises(UsageError, match="was trained on"):
            export_run(paths.run, tmp_path / "all", "sharp", data=paths.data, cache=paths.cache, force=True,
                    score_on=tmp_path / "unseen")  # fmt: skip

    def test_memory_that_runs_out_cuts_the_batch(self, paths, first, monkeypatch):
        original = RefinementTask.step

        def greedy(self, source, step, pieces, update):
            if pieces < 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(self, source, step, pieces, update)

        monkeypatch.setattr(RefinementTask, "step", greedy)
        assert train(small("schedule.batch_size=2"), paths, stage_one=first).state.pieces == 2

    def test_gradients_that_are_not_finite_end_it(self, paths, first, monkeypatch):
        monkeypatch.setattr(loop, "MAX_SKIPPED", 2)
        monkeypatch.setattr(L, "l1_loss", lambda made, *_: made.sum() * float("nan"))
        with pytest.raises(CaseError, match="2 updates of the refiner in a row"):
            train(small("schedule.steps=5"), paths, stage_one=first)


class TestRecipe:
    def test_the_presets(self):
        assert refiner_config(small()).widths == (16, 32, 64, 64)
        assert refiner_config(small("refinement.width=64")).widths == (64, 64, 64, 64)

    def test_ssim_and_dice_weigh_the_same(self):
        # Equation 7, with both lambdas 1.0.
        losses = load_recipe("refiner").losses
        assert (losses.ssim, losses.dice, losses.l1, losses.ssim_tissue) == (1.0, 1.0, 0.0, "whole")
        with pytest.raises(UsageError, match="must be above 0"):
            small("losses.l1=0", "losses.ssim=0")

    def test_values_that_cannot_be(self):
        for change in ("refinement.width=17", "refinement.overlap=1.0", "refinement.blur=2.0", "refinement.noise=-0.1"):
            with pytest.raises(UsageError, match="refinement"):
                small(change)


@pytest.fixture(scope="module")
def folder(data, first, cache, tmp_path_factory):
    """A trained refiner, as a user trains it, and a subject that it has not seen."""
    folder = tmp_path_factory.mktemp("commands")
    write_phantom(make_phantom((40, 44, 36), 9), folder / "unseen", "new")
    shutil.copytree(first.folder, folder / "w")
    sets = [v for change in SMALL for v in ("--set", change)]
    code = main(["train", "refiner", "--data", str(data), "--run", str(folder / "run"), "--cache", str(cache),
                 "--weights", str(folder / "w"), "--stage-one", "tiny", *sets, "--set", "schedule.steps=4",
                 "--set", "optimizer.learning_rate=3e-3", "--set", "output.contrast=0.0"])  # fmt: skip
    assert code == ExitCode.OK
    return folder


class TestCommands:
    def _export(self, folder, data, weights, *more: str) -> int:
        return main(["export", str(folder / "run"), "--data", str(data), "--weights", str(weights), "--device", "cpu",
                     "--model", "sharp", *more])  # fmt: skip

    @pytest.fixture
    def weights(self, folder, tmp_path):
        shutil.copytree(folder / "w", tmp_path / "weights")
        return tmp_path / "weights"

    def test_from_a_run_to_a_refined_exam(self, folder, data, weights, tmp_path, capsys):
        assert self._export(folder, data, weights) == ExitCode.USAGE
        assert "only with scores" in capsys.readouterr().err
        assert self._export(folder, data, weights, "--score-on", str(data)) == ExitCode.USAGE
        assert "was trained on" in capsys.readouterr().err
        assert self._export(folder, data, weights, "--score-on", str(folder / "unseen"), "--force") == ExitCode.OK
        manifest = read_manifest(weights)
        entry, first = manifest.entry("sharp"), manifest.entry("tiny")
        assert entry.spec.kind == "refiner"
        assert entry.spec.window == (16, 16, 32)
        assert entry.spec.first_stage.sha256 == first.sha256
        scores = manifest.lineage.scores_of(entry.sha256)
        assert "t1c" in scores.by_target
        assert scores.mean != scores.unrefined
        assert first.spec.refiner == "sharp"
        assert first.spec.refine is False
        assert main(["dropout", "--input", str(folder / "unseen"), "--output", str(tmp_path / "in")]) == ExitCode.OK
        made = {}
        for option in ("--refine", "--no-refine"):
            out = tmp_path / option
            code = main(["synthesize", "--input", str(tmp_path / "in"), "--output", str(out), "--weights", str(weights),
                         "--model", "tiny", option, "--on-error", "stop", "--device", "cpu"])  # fmt: skip
            assert code == ExitCode.OK
            (made[option],) = out.iterdir()
        assert made["--refine"].name == made["--no-refine"].name
        assert made["--refine"].read_bytes() != made["--no-refine"].read_bytes()

    def test_a_refiner_that_makes_it_worse_is_refused(self, folder, data, weights, capsys, monkeypatch):
        similarity = {True: 0.6, False: 0.6}

        def scored(model, *_):
            values = {"official_healthy": 0.9, "official_tumour": 0.99, "ssim_brain": similarity[bool(model.refiner)]}
            return [VolumeScores("new", m, values) for m in MODALITIES]

        monkeypatch.setattr(validation, "score_missing_sequences", scored)
        arguments = (weights, "--score-on", str(folder / "unseen"))
        before = (weights / "manifest.json").read_bytes()
        similarity[True] = 0.599
        assert self._export(folder, data, *arguments) == ExitCode.USAGE
        assert "is worse than 'tiny'" in capsys.readouterr().err
        assert (weights / "manifest.json").read_bytes() == before
        assert not (weights / "sharp.safetensors").exists()
        similarity[True] = 0.65
        assert self._export(folder, data, *arguments, "--make-default") == ExitCode.OK
        first = read_manifest(weights).entry("tiny")
        assert first.spec.refine is True
        assert read_manifest(weights).default == "regression"
        # Better than none, worse than the refiner that is there.
        similarity[True] = 0.62
        assert self._export(folder, data, *arguments) == ExitCode.USAGE
        assert "is worse than 'sharp'" in capsys.readouterr().err
        similarity[True] = 0.66
        assert self._export(folder, data, *arguments, "--flip-average") == ExitCode.USAGE
        assert "its first stage does; leave out" in capsys.readouterr().err
        assert self._export(folder, data, *arguments) == ExitCode.OK
        assert read_manifest(weights).entry("tiny").spec.refine is True

    def test_views_joined_in_another_way_are_another_first_stage(self, folder, data, weights, capsys):
        assert self._export(folder, data, weights, "--force") == ExitCode.OK
        Synthesizer("tiny", weights=weights, device="cpu", refine=True)
        assert "learned on views" not in capsys.readouterr().err
        Synthesizer("tiny", weights=weights, device="cpu", refine=True, fusion="median")
        assert "learned on views joined as" in capsys.readouterr().err
        change_spec(read_manifest(weights).entry("tiny"), flip_average=True)
        assert self._export(folder, data, weights, "--force") == ExitCode.USAGE
        assert "Put it back, or train anew" in capsys.readouterr().err

    def test_it_goes_where_its_first_stage_is(self, folder, data, weights, tmp_path, capsys):
        assert self._export(folder, data, tmp_path / "empty", "--force") == ExitCode.USAGE
        assert "which" in (said := capsys.readouterr().err)
        assert "export into the folder that has it" in said
        path = weights / "manifest.json"
        form = json.loads(path.read_text())
        form["models"]["tiny"]["files"]["torch"]["sha256"] = "f" * 64
        path.write_text(json.dumps(form))
        assert self._export(folder, data, weights, "--force") == ExitCode.USAGE
        shutil.copy(folder / "w" / "manifest.json", path)
        code = main(["export", str(folder / "run"), "--data", str(data), "--weights", str(weights), "--model", "tiny",
                     "--force"])  # fmt: skip
        assert code == ExitCode.USAGE
        assert "give the refiner another name" in capsys.readouterr().err

    def test_what_is_exported_is_what_was_trained(self, folder, data, weights):
        assert self._export(folder, data, weights, "--force", "--contrast", "0.4") == ExitCode.OK
        change_spec(read_manifest(weights).entry("tiny"), refine=True)
        model = Synthesizer("tiny", weights=weights, device="cpu", precision="fp32").model
        assert model.contrast == 0.4
        own = Refiner(refiner_config(small()))
        own.load_state_dict(load_state(folder / "run" / LAST).average)
        loaded = model.refiner._network.state_dict()
        for key, value in own.state_dict().items():
            torch.testing.assert_close(loaded[key], value, atol=1e-3, rtol=1e-3)
