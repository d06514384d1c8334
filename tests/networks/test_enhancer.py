"""The 3D enhancer: what it makes of a first stage's T1c, how it learns, and how it comes into use."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from app.cli import main
from app.core.constants import MODALITIES
from app.core.errors import CaseError, ExitCode, UsageError, WeightsError
from app.inference import pipeline
from app.inference.device import Runtime
from app.inference.refinement import VolumeRefiner
from app.inference.synthesizer import Synthesizer
from app.networks.architectures import EnhancerConfig, RefinerConfig
from app.networks.enhancer import ENHANCING, TARGET, Blinded, Enhancer, nearby
from app.networks.refiner import Refiner
from app.registry.checkpoints import load_refiner
from app.registry.lineage import TrainingRecord
from app.registry.manifest import change_spec, read_manifest, write_entry
from app.training.checkpoint import LAST, load_state
from app.training.config import AugmentationRecipe, load_recipe
from app.training.data.augmentation import recolour_patches
from app.training.data.cache import NORMALIZATION, build_cache
from app.training.data.patches import Patches, PatchSampler, PatchSource
from app.training.tasks.base import load_initial_weights
from app.training.tasks.enhancement import EnhancementTask, halved
from app.training.trainer import TrainingPaths, train
from tests.networks.small_models import add_expert, save_refiner, scores_of

SMALL = ["data.patch=[32,64,64]", "schedule.epoch_steps=0", "schedule.budget_minutes=0", "schedule.steps=1"]
OTHERS = tuple(i for i in range(4) if i != TARGET)


def small(*changes: str):
    return load_recipe("enhancer", [*SMALL, *changes])


def network(seed: int = 0, widths: tuple[int, ...] = (4, 8)) -> Enhancer:
    torch.manual_seed(seed)
    made = Enhancer(EnhancerConfig(widths)).eval()
    torch.nn.init.normal_(made.head.weight)
    return made


def volumes(seed: int = 0, count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """A first stage's T1c, and four sequences."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 8, 12, 16, generator=random), torch.randn(count, 4, 8, 12, 16, generator=random)


class TestNetwork:
    @settings(deadline=None, max_examples=20)
    @given(st.integers(0, 50), st.sets(st.sampled_from(OTHERS), min_size=1))
    def test_it_brightens_towards_what_would_enhance_and_darkens_nothing(self, seed, members):
        enhancer, (stage, images) = network(seed), volumes(seed)
        members = tuple(sorted(members))
        target = torch.tensor([TARGET])
        with torch.no_grad():
            made = enhancer(stage, images, target, members)
            logits, level = enhancer.parts(F.avg_pool3d(enhancer.shown(images, members), 2))
        missed = (level - nearby(F.avg_pool3d(stage, 2))).clamp(min=0)
        answers = torch.cat([logits[0].softmax(dim=1)[:, ENHANCING : ENHANCING + 1], missed], dim=1)
        p, missed = F.interpolate(answers, scale_factor=2, mode="trilinear").split(1, dim=1)
        torch.testing.assert_close(made, stage + p * missed)
        assert (made >= stage).all()

    def test_what_the_first_stage_enhances_stays_as_it_is_with_what_lies_beside_it(self):
        enhancer = network()
        for layer in (enhancer.head, enhancer.segmenter.heads[0]):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
        enhancer.head.bias.data.fill_(3.0)
        enhancer.segmenter.heads[0].bias.data[ENHANCING] = 20.0
        stage, images = torch.zeros(1, 1, 64, 16, 16), torch.zeros(1, 4, 64, 16, 16)
        stage[:, :, 8:12, 6:10, 6:10] = 4.0
        with torch.no_grad():
            made = enhancer(stage, images, torch.tensor([TARGET]), OTHERS)
        torch.testing.assert_close(made[:, :, 7:14], stage[:, :, 7:14])
        torch.testing.assert_close(made[:, :, 32:], torch.full_like(stage[:, :, 32:], 3.0), atol=1e-3, rtol=0)

    @settings(deadline=None, max_examples=20)
    @given(st.integers(0, 50))
    def test_neither_a_t1c_nor_what_lacks_is_seen(self, seed):
        enhancer, (stage, images) = network(seed), volumes(seed)
        other = images.clone()
        other[:, [TARGET, OTHERS[0]]] = 7.0
        asked = torch.tensor([TARGET]), OTHERS[1:]
        with torch.no_grad():
            assert torch.equal(enhancer(stage, images, *asked), enhancer(stage, other, *asked))
            assert not torch.equal(enhancer(stage, images, asked[0], OTHERS), enhancer(stage, other, asked[0], OTHERS))

    def test_memory_that_runs_out_leaves_windows_that_it_can_look_at(self, tmp_path, monkeypatch):
        config = EnhancerConfig((8, 8, 8, 8, 8))
        entry = save_refiner(tmp_path, "e", config, Enhancer(config).state_dict(), NORMALIZATION, (128, 128, 128), 0.25)
        refiner = VolumeRefiner(entry, load_refiner(entry), Runtime("torch", "cpu", "fp32", 1, ""))
        run = refiner._network.forward

        def greedy(volume, *rest):
            if volume.shape[2] > 64:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return run(volume, *rest)

        monkeypatch.setattr(refiner._network, "forward", greedy)
        brain, scores = np.ones((40, 40, 40), bool), np.zeros((40, 40, 40), np.float32)
        assert np.isfinite(refiner.refine(scores, {"t2w": scores}, "t1c", brain, -1.0)).all()
        monkeypatch.setattr(refiner._network, "forward", lambda volume, *_: greedy(volume.new_zeros(1, 1, 65, 1, 1)))
        with pytest.raises(CaseError, match="--no-refine"):
            refiner.refine(scores, {"t2w": scores}, "t1c", brain, -1.0)

    def test_as_a_segmenter_it_is_blind_to_the_t1c(self):
        _, images = volumes()
        other = images.clone()
        other[:, TARGET] = 7.0
        with torch.no_grad():
            assert torch.equal(*(Blinded(network())(v) for v in (images, other)))

    def test_its_shape_travels_in_the_manifests_form(self, tmp_path):
        made = network(widths=(8, 16, 16))
        entry = save_refiner(tmp_path, "e", made.config, made.state_dict(), NORMALIZATION, (16, 16, 16), 0.25)
        loaded = load_refiner(entry)
        assert isinstance(loaded, Enhancer)
        assert loaded.config == made.config
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), made.parameters(), strict=True))


def patches_of(labels: torch.Tensor) -> Patches:
    count, sides = len(labels), labels.shape[1:]
    images = 0.3 * torch.randn(count, 4, *sides, generator=torch.Generator().manual_seed(1))
    brain = torch.ones(count, 1, *sides)
    brain[..., :3] = 0
    images = torch.where(brain > 0, images, torch.full_like(images, -1.0))
    scale = torch.tensor([-1.5, 1.5]).expand(count, 4, 2)
    return Patches(images, brain, labels, torch.ones(count, dtype=torch.bool), scale, images[:, :0])


class TestRecolour:
    def setup_method(self):
        labels = torch.zeros(2, 16, 16, 16, dtype=torch.long)
        labels[0, 4:12, 4:12, 4:12] = 2
        labels[0, 6:10, 6:10, 6:10] = 3
        self.patches = patches_of(labels)
        self.near = F.max_pool3d((labels[:, None] > 0).float(), 3, 1, 1)[:, 0] > 0

    def _made(self, seed=0, **shares):
        return recolour_patches(self.patches, AugmentationRecipe(**shares), np.random.default_rng(seed))

    def test_nothing_asked_changes_nothing(self):
        assert torch.equal(self._made(), self.patches.images)

    @pytest.mark.parametrize("modality", ["t1n", "t2f"])
    def test_it_changes_that_sequences_tumour_alone(self, modality):
        made = self._made(**{f"recolour_{modality}": 1.0})
        changed = made != self.patches.images
        which = MODALITIES.index(modality)
        assert changed[0, which][self.near[0]].float().mean() > 0.9
        changed[0, which][self.near[0]] = False
        assert not changed.any()
        assert made.abs().max() <= 1.5

    def test_its_parts_get_shades_of_their_own_by_the_seed(self):
        def contrast(images):
            image, labels = images[0, MODALITIES.index("t1n")], self.patches.labels[0]
            return float(image[labels == 3].mean() - image[labels == 2].mean())

        found = [contrast(self._made(seed, recolour_t1n=1.0)) for seed in range(8)]
        assert np.ptp(found) > 0.3
        assert contrast(self._made(3, recolour_t1n=1.0)) == found[3]


def test_it_looks_at_half_the_resolution():
    labels = torch.zeros(1, 16, 16, 16, dtype=torch.long)
    labels[:, 4:8] = 3
    labels[:, 8:11] = 2
    patches = patches_of(labels)
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
        losses = [task.step(source, 0, 1, lambda _: optimizer.step() is None) for _ in range(20)]
        assert losses[-1]["entropy"] < 0.6 * losses[0]["entropy"]
        assert losses[-1]["enhancing"] < 0.8 * losses[0]["enhancing"]

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

    def test_it_starts_from_an_enhancer_and_from_nothing_else(self, tmp_path):
        task, other = (EnhancementTask(small(f"seed={s}"), torch.device("cpu")) for s in (0, 1))
        state = other.enhancer.state_dict()
        entry = save_refiner(tmp_path, "e", other.enhancer.config, state, NORMALIZATION, (32, 32, 32), 0.25)
        load_initial_weights(task, entry)
        for learner in (task.enhancer, task.average):
            pairs = zip(learner.parameters(), other.enhancer.parameters(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
        refiner = Refiner(RefinerConfig())
        entry = save_refiner(tmp_path, "r", refiner.config, refiner.state_dict(), NORMALIZATION, (32, 32, 32), 0.1)
        with pytest.raises(UsageError, match="another architecture"):
            load_initial_weights(task, entry)
        with pytest.raises(WeightsError, match="not a refiner"):
            load_initial_weights(task, replace(entry, kind="judge"))


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
            metrics = ("official_healthy", "official_tumour", "ssim_brain")
            return [VolumeScores("u9", "t1c", dict.fromkeys(metrics, value))]

        for module in ("export", "promotion"):
            monkeypatch.setattr(f"app.training.{module}.score_missing_sequences", scored)
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
