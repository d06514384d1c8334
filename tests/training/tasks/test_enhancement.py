"""The enhancer: how it learns, and how it comes into use."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from app.cli import main
from app.core.constants import MODALITIES
from app.core.errors import CaseError, ExitCode, UsageError, WeightsError
from app.inference import pipeline
from app.inference.synthesizer import Synthesizer
from app.networks.architectures import RefinerConfig
from app.networks.enhancer import TARGET
from app.networks.refiner import Refiner
from app.registry.lineage import TrainingRecord
from app.registry.manifest import change_spec, read_manifest, write_entry
from app.training.checkpoint import LAST, load_state
from app.training.config import load_recipe
from app.training.data.cache import NORMALIZATION, build_cache
from app.training.data.patches import PatchSampler, PatchSource
from app.training.tasks.enhancement import EnhancementTask, halved
from app.training.trainer import TrainingPaths, train
from tests.networks.small_models import add_expert, save_refiner, scores_of
from tests.training.data.variation.test_augmentation import tumour_patches

SMALL = ["data.patch=[32,64,64]", "schedule.epoch_steps=0", "schedule.budget_minutes=0", "schedule.steps=1"]
OTHERS = tuple(i for i in range(4) if i != TARGET)


def small(*changes: str):
    return load_recipe("enhancer", [*SMALL, *changes])


def test_it_looks_at_half_the_resolution():
    labels = torch.zeros(1, 16, 16, 16, dtype=torch.long)
    labels[:, 4:8] = 3
    labels[:, 8:11] = 2
    patches = tumour_patches(labels)
    half = halved(patches)
    assert half.images.shape == (1, 4, 8, 8, 8)
    torch.testing.assert_close(half.images[0, 1, 2, 3, 4], patches.images[0, 1, 4:6, 6:8, 8:10].mean())
    # Blocks of one kind, and one that is half of either: the first of the classes.
    assert half.labels[0, :, 0, 0].tolist() == [0, 0, 3, 3, 2, 0, 0, 0]
    # Of the last block beside the background half is brain, which counts.
    assert half.brain[0, 0, 0, 0].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]
    assert torch.equal(half.scale, patches.scale)


@pytest.fixture(scope="module")
def subjects(training_data, training_cache):
    return build_cache(training_data, training_cache)


@pytest.fixture
def paths(training_data, training_cache, tmp_path):
    return TrainingPaths(training_data, tmp_path / "run", training_cache)


class TestTask:
    def test_it_learns_one_batch_by_heart(self, subjects):
        still = [f"augmentation.{k}=0" for k in ("rotate", "zoom", "recolour_t1n", "recolour_t2f", "thick")]
        recipe = small(*still, "data.single_missing=1", "data.tumour_share=1", "losses.enhancing=100")
        torch.manual_seed(0)
        task = EnhancementTask(recipe, torch.device("cpu"))
        source = PatchSource(PatchSampler(subjects, recipe.data, -1.0), 1)
        optimizer = torch.optim.AdamW(task.enhancer.parameters(), lr=2e-3)
        losses = [task.step(source, 0, 1, lambda _: optimizer.step() is None) for _ in range(10)]
        assert losses[-1]["entropy"] < 0.8 * losses[0]["entropy"]
        assert losses[-1]["enhancing"] < 0.95 * losses[0]["enhancing"]

    def test_it_never_learns_from_the_t1c(self, subjects, monkeypatch):
        recipe, seen = small("data.single_missing=0.5"), []
        task = EnhancementTask(recipe, torch.device("cpu"))
        parts = task.enhancer.parts
        monkeypatch.setattr(task.enhancer, "parts", lambda images: seen.append(images) or parts(images))
        source = PatchSource(PatchSampler(subjects, recipe.data, -1.0), 1)
        for step in range(6):
            task.step(source, step, 1, lambda _: True)
        there = [{i for i in range(4) if (images[:, i] != -1).any()} for images in seen]
        assert all(TARGET not in members and members for members in there)
        assert {len(members) for members in there} & {1, 2}

    def test_pieces_give_the_gradient_of_the_whole(self, subjects):
        recipe, gradients = small("schedule.batch_size=2", "schedule.precision='fp32'", "losses.dice=0"), []
        for pieces in (1, 2):
            torch.manual_seed(0)
            task = EnhancementTask(recipe, torch.device("cpu"))
            source = PatchSource(PatchSampler(subjects, recipe.data, -1.0), 2)
            task.step(source, 0, pieces, lambda _: True)
            held = [p.grad for p in task.enhancer.parameters() if p.grad is not None]
            gradients.append(torch.cat([g.flatten() for g in held]))
        assert F.cosine_similarity(*gradients, dim=0) > 0.95
        whole, added = (float(g.norm()) for g in gradients)
        assert added == pytest.approx(whole, rel=0.25)

    def test_it_starts_from_an_enhancer_and_from_nothing_else(self, weights_dir, tmp_path):
        task, other = (EnhancementTask(small(f"seed={s}"), torch.device("cpu")) for s in (0, 1))
        state = other.enhancer.state_dict()
        entry = save_refiner(tmp_path, "e", other.enhancer.config, state, NORMALIZATION, (32, 32, 32), 0.25)
        task.load_initial_weights(entry)
        for learner in (task.enhancer, task.average):
            pairs = zip(learner.parameters(), other.enhancer.parameters(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
        refiner = Refiner(RefinerConfig())
        entry = save_refiner(tmp_path, "r", refiner.config, refiner.state_dict(), NORMALIZATION, (32, 32, 32), 0.1)
        with pytest.raises(UsageError, match="another architecture"):
            task.load_initial_weights(entry)
        with pytest.raises(WeightsError, match="not a refiner"):
            task.load_initial_weights(read_manifest(weights_dir).entry("tiny"))


@pytest.fixture(scope="module")
def run(training_data, training_cache, tmp_path_factory):
    """A run of one step, validated by the parts that it finds without T1c."""
    folder = tmp_path_factory.mktemp("enhancer") / "run"
    train(small("schedule.validate_every=1", "data.held_out=1"), TrainingPaths(training_data, folder, training_cache))
    return folder


@pytest.fixture
def weights(weights_dir, tmp_path):
    return shutil.copytree(weights_dir, tmp_path / "w")


@pytest.fixture
def export(run, weights, training_data, training_cache):
    """`app export RUN` as a user calls it."""

    def call(*more: str, name: str = "glow") -> int:
        return main(["export", str(run), "--data", str(training_data), "--cache", str(training_cache), "--weights",
                     str(weights), "--model", name, "--device", "cpu", *more])  # fmt: skip

    return call


class TestUse:
    def test_it_is_validated_by_what_it_finds_and_resumes(self, run, paths):
        assert load_state(run / LAST).best is not None
        train(small(), paths)
        assert train(small("schedule.steps=2"), paths, resume=True).state.step == 2

    def test_from_a_run_to_an_exam(self, export, weights, subject):
        plain = Synthesizer("tiny", weights=weights, device="cpu", precision="fp32")
        case = {m: str(f) for m, f in subject.items()}
        before = {m: plain(case, target=m) for m in ("t1c", "t2f")}
        assert export("--refines", "tiny", "--force", "--make-default") == ExitCode.OK
        spec = read_manifest(weights).entry("tiny").spec
        assert (spec.refiner, spec.refine) == ("glow", True)
        both = Synthesizer("tiny", weights=weights, device="cpu", precision="fp32")
        after = {m: both(case, target=m) for m in ("t1c", "t2f")}
        # It has something to say on T1c alone: everything else is made and described as without it.
        assert after["t2f"].header.binaryblock == before["t2f"].header.binaryblock
        np.testing.assert_array_equal(np.asarray(after["t2f"].dataobj), np.asarray(before["t2f"].dataobj))
        assert b"tiny+glow" in after["t1c"].header["descrip"].item()
        assert not np.array_equal(np.asarray(after["t1c"].dataobj), np.asarray(before["t1c"].dataobj))
        without = Synthesizer("tiny", weights=weights, device="cpu", precision="fp32", refine=False)(case, target="t1c")
        np.testing.assert_array_equal(np.asarray(without.dataobj), np.asarray(before["t1c"].dataobj))

    def test_a_specialist_may_have_one(self, export, weights, subject):
        add_expert(weights, makes=("t1c",))
        change_spec(read_manifest(weights).entry("tiny"), specialists={"t1c": "expert"})
        assert export("--refines", "expert", "--force", "--make-default") == ExitCode.OK
        made = Synthesizer("tiny", weights=weights, device="cpu", precision="fp32")
        case = {m: str(f) for m, f in subject.items()}
        assert b"expert+glow" in made(case, target="t1c").header["descrip"].item()
        assert b"tiny " in made(case, target="t2f").header["descrip"].item()

    def test_a_worse_one_is_refused(self, export, weights, monkeypatch, capsys, tmp_path):
        from app.data.phantom import make_phantom, write_phantom
        from app.evaluation.scoring import VolumeScores

        write_phantom(make_phantom((40, 44, 36), 9), tmp_path / "unseen", "u9")
        asked = []

        def scored(model, _cases, _masks, targets=None):
            asked.append((model.name, targets))
            value = {"tiny": 0.6, "tiny+candidate": similarity[0], "tiny+glow": 0.65}[model.name]
            return [
                VolumeScores("u9", "t1c", dict.fromkeys(("official_healthy", "official_tumour", "ssim_brain"), value))
            ]

        monkeypatch.setattr("app.training.validation.score_missing_sequences", scored)
        options = "--refines", "tiny", "--score-on", str(tmp_path / "unseen")
        similarity = [0.59]
        assert export(*options) == ExitCode.USAGE
        assert "is worse than 'tiny'" in capsys.readouterr().err
        assert "glow" not in read_manifest(weights).entries
        similarity[0] = 0.65
        assert export(*options) == ExitCode.OK
        assert read_manifest(weights).entry("tiny").spec.refine is False
        assert scores_of(weights, "glow").unrefined["ssim_brain"] == 0.6
        similarity[0] = 0.64
        assert export(*options, name="other") == ExitCode.USAGE
        assert "is worse than 'glow'" in capsys.readouterr().err
        assert {targets for _, targets in asked} == {("t1c",)}

    @pytest.mark.parametrize(
        "options,message",
        [
            ((), "name that model with --refines"),
            (("--refines", "regression"), "makes T1c from scores as training sees them"),
            (("--refines", "tiny", "--contrast", "0.2"), "leave out --contrast"),
            (("--refines", "sharp"), "no generator"),
            (("--refines", "led"), "leaves T1c to 'expert'; name that one"),
        ],
    )
    def test_what_cannot_be(self, export, weights, options, message, capsys):
        made = Refiner(RefinerConfig())
        save_refiner(weights, "sharp", made.config, made.state_dict(), NORMALIZATION, (32, 32, 32), 0.25)
        add_expert(weights, name="led", makes=MODALITIES)
        change_spec(read_manifest(weights).entry("led"), specialists={"t1c": "expert"})
        assert export(*options, "--force") == ExitCode.USAGE
        assert message in capsys.readouterr().err

    def test_another_models_is_not_overwritten(self, export, weights, capsys):
        add_expert(weights, makes=("t1c",))
        assert export("--refines", "tiny", "--force") == ExitCode.OK
        assert export("--refines", "expert", "--force") == ExitCode.USAGE
        assert "refines 'tiny'; give the new one another name" in capsys.readouterr().err
        assert export("--refines", "tiny", "--force") == ExitCode.OK

    def test_no_score_counts_on_what_its_first_stage_was_taught(self, export, weights, capsys, tmp_path):
        from app.data.phantom import make_phantom, write_phantom

        write_phantom(make_phantom((40, 44, 36), 9), tmp_path / "seen", "u9")
        tiny = read_manifest(weights).entry("tiny")
        write_entry(weights, "tiny", tiny.spec, {role: weights / file.path for role, file in tiny.files.items()},
                    training=TrainingRecord(model="tiny", subjects=("u9",)))  # fmt: skip
        assert export("--refines", "tiny", "--score-on", str(tmp_path / "seen")) == ExitCode.USAGE
        assert "was trained on" in capsys.readouterr().err

    def test_it_makes_no_image_of_a_broken_first_stage(self, export, weights, subject, monkeypatch):
        assert export("--refines", "tiny", "--force", "--make-default") == ExitCode.OK
        made = Synthesizer("tiny", weights=weights, device="cpu", precision="fp32")
        real = pipeline.predict

        def broken(*arguments):
            whole = real(*arguments)
            return replace(whole, volume=np.full_like(whole.volume, np.nan))

        monkeypatch.setattr(pipeline, "predict", broken)
        with pytest.raises(CaseError, match="'tiny' made values that are not finite"):
            made({m: str(f) for m, f in subject.items()}, target="t1c")

    def test_a_refiner_of_everything_is_not_pushed_aside(self, export, weights, capsys):
        made = Refiner(RefinerConfig())
        save_refiner(weights, "sharp", made.config, made.state_dict(), NORMALIZATION, (32, 32, 32), 0.25)
        change_spec(read_manifest(weights).entry("tiny"), refiner="sharp", refine=False)
        assert export("--refines", "tiny", "--force") == ExitCode.USAGE
        assert "has a refiner of other sequences too (sharp)" in capsys.readouterr().err
