from __future__ import annotations

import numpy as np
import pytest
import torch

from app.cases import scan
from app.cli import main
from app.constants import MODALITIES, VIEWS
from app.errors import UsageError
from app.intensity import Normalization
from app.metrics.official import ssim_map
from app.phantom import make_phantom, write_phantom
from app.preprocess import measure
from app.training.batches import Augmentation, Sampler
from app.training.cache import build_cache
from app.training.generator import NORMALIZATION, Trainer, TrainingConfig
from app.training.losses import brain_mean, l1_loss, ssim_loss
from app.views import Canvas
from app.volume import load_volume
from app.weights import load_generator, load_intensity, read_manifest

CANVAS = Canvas(dict.fromkeys(VIEWS, (48, 48)))
NOTHING = Augmentation(flip=0, shift=0, contrast=0, brightness=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for seed in range(2):
        write_phantom(make_phantom((40, 44, 36), seed), folder, f"s{seed}")
    write_phantom(make_phantom((40, 44, 36), 9), folder, "lacking", leave_out=("t1c",))
    return folder


@pytest.fixture(scope="module")
def subjects(data, tmp_path_factory):
    return build_cache(scan(data).cases, tmp_path_factory.mktemp("cache"), NORMALIZATION, min_pixels=200)


class TestCache:
    def test_scores_are_the_pipelines(self, subjects, data):
        subject = subjects[0]
        volume = load_volume(data / "s0" / "s0-t2w.nii.gz").data
        intensity = measure(volume, "t2w", NORMALIZATION)
        assert subject.intensities["t2w"].mean == pytest.approx(intensity.mean)
        inside = np.asarray(subject.scores[3], dtype=np.float32)[subject.brain]
        assert inside.mean() == pytest.approx(0, abs=0.02)
        assert inside.std() == pytest.approx(1, abs=0.02)

    def test_it_is_cropped_to_the_brain_and_lists_full_slices(self, subjects):
        for subject in subjects:
            for axis in range(3):
                filled = subject.brain.any(axis=tuple(a for a in range(3) if a != axis))
                assert filled[0]
                assert filled[-1]
            assert 0 < len(subject.slices["axial"]) <= subject.scores.shape[3]

    def test_incomplete_subjects_are_left_out_by_name(self, data, tmp_path, caplog):
        assert len(build_cache(scan(data).cases, tmp_path, NORMALIZATION, min_pixels=200)) == 2
        assert "lacking is left out" in caplog.text

    def test_it_is_used_again_but_not_for_another_normalisation(self, data, tmp_path):
        build_cache(scan(data).cases, tmp_path, NORMALIZATION, min_pixels=200)
        assert len(build_cache([], tmp_path, NORMALIZATION)) == 2
        with pytest.raises(UsageError, match="another normalisation"):
            build_cache([], tmp_path, Normalization("volume", background=0.0))


class TestBatches:
    def _sampler(self, subjects, **options):
        return Sampler(subjects, CANVAS, -1.0, **options)

    def test_the_seed_decides(self, subjects):
        one, two, other = (self._sampler(subjects, seed=s).draw(4) for s in (1, 1, 2))
        np.testing.assert_array_equal(one.images, two.images)
        assert one.images.shape == (4, 4, 48, 48)
        assert not np.array_equal(one.images, other.images)

    def test_truth_is_the_target_unaugmented(self, subjects):
        batch = self._sampler(subjects, augmentation=NOTHING).draw(3)
        np.testing.assert_array_equal(batch.truth[:, 0], batch.images[:, batch.target])
        assert batch.target not in batch.members
        assert set(np.unique(batch.brain)) <= {0, 1}

    def test_augmentation_moves_all_sequences_together_and_spares_the_background(self, subjects):
        batch = self._sampler(subjects, augmentation=Augmentation(flip=1, shift=3, contrast=0.2, brightness=0.2)).draw(
            6
        )
        background = batch.images == -1.0
        for channel in range(1, 4):
            agree = background[:, channel] == background[:, 0]
            assert agree.mean() > 0.99
        assert ((batch.truth == -1.0) == background[:, batch.target : batch.target + 1]).all()

    def test_scale_says_where_the_challenge_has_0_and_1(self, subjects):
        batch = self._sampler(subjects, augmentation=NOTHING).draw(8)
        low, high = batch.scale[:, 0], batch.scale[:, 1]
        assert (low < -1).all()
        assert (batch.truth.max(axis=(1, 2, 3)) <= high + 0.01).all()

    def test_every_subset_comes(self, subjects):
        sampler = self._sampler(subjects, single_missing=0.3)
        drawn = [sampler.draw(1) for _ in range(200)]
        assert {len(b.members) for b in drawn} == {1, 2, 3}
        assert {b.target for b in drawn} == set(range(len(MODALITIES)))
        assert {b.view for b in drawn} == {0, 1, 2}


class TestLosses:
    def test_only_brain_pixels_count(self):
        brain = torch.zeros(1, 1, 8, 8)
        brain[..., 2:4, 2:4] = 1
        values = torch.full((1, 1, 8, 8), 100.0)
        values[..., 2:4, 2:4] = 3
        assert float(brain_mean(values, brain)) == 3
        assert float(l1_loss(values, torch.zeros_like(values), brain)) == 3
        assert float(brain_mean(values, torch.zeros_like(brain))) == 0

    def test_ssim_is_the_metrics_own_in_two_dimensions(self):
        random = np.random.default_rng(0)
        truth, made = random.random((2, 40, 44)), random.random((2, 40, 44))
        brain = np.zeros((2, 40, 44))
        brain[:, 5:35, 6:40] = 1
        scale = torch.tensor([[0.0, 1.0]]).repeat(2, 1)
        ours = ssim_loss(*(torch.from_numpy(v).float()[:, None] for v in (made, truth, brain)), scale)
        maps = [ssim_map(made[i] * brain[i], truth[i] * brain[i], extent=1.0)[brain[i] > 0] for i in range(2)]
        assert float(ours) == pytest.approx(1 - np.concatenate(maps).mean(), abs=1e-4)

    def test_a_perfect_prediction_costs_nothing(self):
        truth = torch.randn(2, 1, 32, 32)
        brain = torch.ones_like(truth)
        scale = torch.tensor([[-3.0, 5.0]]).repeat(2, 1)
        assert float(ssim_loss(truth, truth, brain, scale)) == pytest.approx(0, abs=1e-5)


class TestTrainer:
    def test_it_learns_one_batch_by_heart(self, subjects, monkeypatch):
        trainer = Trainer(TrainingConfig(batch_size=2, steps=40, warmup=0.05), subjects, CANVAS)
        batch = trainer.sampler.draw(2)
        monkeypatch.setattr(trainer.sampler, "draw", lambda _: batch)
        losses = [trainer.train_step(trainer.progress(0)) for _ in range(40)]
        assert losses[-1]["l1"] < 0.6 * losses[0]["l1"]
        assert losses[-1]["ssim"] < losses[0]["ssim"]

    def test_the_same_seed_gives_the_same_weights(self, subjects):
        ends = []
        for _ in range(2):
            trainer = Trainer(TrainingConfig(batch_size=2, steps=3, seed=5), subjects, CANVAS)
            for _ in range(3):
                trainer.train_step(trainer.progress(0))
            ends.append(torch.cat([p.flatten() for p in trainer.average.parameters()]))
        torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=0)

    def test_a_gradient_that_is_not_finite_is_skipped(self, subjects, caplog):
        trainer = Trainer(TrainingConfig(batch_size=2, steps=3), subjects, CANVAS)
        before = [p.detach().clone() for p in trainer.network.parameters()]
        for parameter in list(trainer.network.parameters())[:1]:
            parameter.register_hook(lambda g: torch.full_like(g, torch.nan))
        trainer.train_step(0.5)
        assert "not finite" in caplog.text
        assert all(torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True))

    @pytest.mark.parametrize("options", [{"preset": "huge"}, {"budget_minutes": 0.0}, {"steps": 0}])
    def test_configuration_that_cannot_be(self, options):
        with pytest.raises(UsageError):
            TrainingConfig(**options)


def test_from_data_to_a_synthesised_sequence(data, tmp_path):
    """The whole loop: train, write, load, complete an exam."""
    code = main(["train", "--data", str(data), "--cache", str(tmp_path / "cache"), "--weights", str(tmp_path / "w"),
                 "--steps", "2", "--batch-size", "1", "--name", "mine"])  # fmt: skip
    # Phantoms of this size have no slice of 2,000 brain pixels.
    assert code == 2
    for seed in range(2):
        write_phantom(make_phantom((72, 80, 64), seed), tmp_path / "larger", f"s{seed}")
    code = main(["train", "--data", str(tmp_path / "larger"), "--cache", str(tmp_path / "cache2"), "--weights",
                 str(tmp_path / "w"), "--steps", "2", "--batch-size", "1", "--name", "mine"])  # fmt: skip
    assert code == 0
    entry = read_manifest(tmp_path / "w").entry("mine")
    assert entry.details["training"]["names"] == ["s0", "s1"]
    assert not load_generator(entry).training
    assert load_intensity(entry) is not None
    write_phantom(make_phantom((72, 80, 64), 5), tmp_path / "in", "new", leave_out=("t1n",))
    code = main(["--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--weights", str(tmp_path / "w")])
    assert code == 0
    assert load_volume(tmp_path / "out" / "new-t1n.nii.gz").data.max() > 0
