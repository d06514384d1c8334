from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from app.core.constants import MODALITIES, VIEWS
from app.core.errors import UsageError
from app.data.nifti_reader import load_volume
from app.data.phantom import make_phantom, write_phantom
from app.preprocessing.normalization import Normalization, measure
from app.training.config import AugmentationRecipe, DataRecipe
from app.training.data import cache
from app.training.data.augmentation import (
    fade_tumours,
    recolour_tumours,
    spoil_images,
    transplant_tumours,
    vary_geometry,
    vary_intensities,
    vary_slices,
)
from app.training.data.cache import NORMALIZATION, build_cache
from app.training.data.slices import Sampler, Source

DATA = DataRecipe(axial=(48, 48), sagittal=(48, 48), coronal=(48, 48), min_brain_pixels=200)
NOTHING = AugmentationRecipe(flip=0, shift=0, contrast=0, brightness=0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for seed in range(2):
        write_phantom(make_phantom((40, 44, 36), seed), folder, f"s{seed}")
    return folder


@pytest.fixture(scope="module")
def subjects(data, tmp_path_factory):
    return build_cache(data, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def spoiled(data, tmp_path):
    """A copy of the data whose second subject a test may spoil, and a way to spoil its labels."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    path = folder / "s1" / "s1-seg.nii.gz"

    def relabel(change):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), path)

    return folder, path, relabel


class TestCache:
    def test_scores_are_the_pipelines(self, subjects, data):
        subject = subjects[0]
        volume = load_volume(data / "s0" / "s0-t2w.nii.gz").data
        intensity = measure(volume, "t2w", NORMALIZATION)
        assert subject.intensities["t2w"].mean == pytest.approx(intensity.mean)
        inside = np.asarray(subject.scores[3], dtype=np.float32)[subject.brain]
        assert inside.mean() == pytest.approx(0, abs=0.02)
        assert inside.std() == pytest.approx(1, abs=0.02)

    def test_it_is_cropped_to_the_brain_and_counts_slices(self, subjects):
        for subject in subjects:
            for axis in range(3):
                filled = subject.brain.any(axis=tuple(a for a in range(3) if a != axis))
                assert filled[0]
                assert filled[-1]
            few, many = subject.slices("axial", 900), subject.slices("axial", 200)
            assert 0 < few.size < many.size
            ill = subject.slices("axial", 200, 10)
            assert all((subject.labels[:, :, i] > 0).sum() >= 10 for i in ill)

    def test_an_incomplete_subject_is_left_out_by_name(self, spoiled, tmp_path, caplog):
        folder, _, _ = spoiled
        write_phantom(make_phantom((40, 44, 36), 9), folder, "lacking", leave_out=("t1c",))
        assert len(build_cache(folder, tmp_path / "cache")) == 2
        assert "lacking is left out: it lacks t1c" in caplog.text

    def test_a_subject_with_two_files_for_a_sequence_is_left_out_by_name(self, spoiled, tmp_path, caplog):
        folder, _, _ = spoiled
        write_phantom(make_phantom((40, 44, 36), 9), folder, "twice")
        shutil.copy(folder / "twice" / "twice-t1n.nii.gz", folder / "twice" / "twice_t1.nii.gz")
        assert [s.name for s in build_cache(folder, tmp_path / "cache")] == ["s0", "s1"]
        assert "twice is left out: " in caplog.text
        assert "2 files for t1n" in caplog.text

    @pytest.mark.parametrize("prefix", ["", "scan-"])
    def test_segmentations_are_found_under_any_name_that_sequences_may_have(self, data, tmp_path, prefix):
        for subject in ("s0", "s1"):
            (tmp_path / "data" / subject).mkdir(parents=True)
            for file in (data / subject).iterdir():
                shutil.copy(file, tmp_path / "data" / subject / file.name.replace(f"{subject}-", prefix))
        found = build_cache(tmp_path / "data", tmp_path / "cache")
        assert [s.name for s in found] == ["s0", "s1"]
        assert all(s.labelled for s in found)

    def test_of_two_segmentations_the_one_that_is_used_is_named(self, spoiled, tmp_path, caplog):
        folder, path, _ = spoiled
        (folder / "older").mkdir()
        shutil.copy(path, folder / "older" / path.name)
        build_cache(folder, tmp_path / "cache")
        assert "segmentations" not in caplog.text
        (path.parent / "s1_seg.nii.gz").write_bytes(path.read_bytes())
        build_cache(folder, tmp_path / "again")
        assert f"s1 has 2 segmentations; {path} is used" in caplog.text

    def test_in_one_folder_nobody_gets_anothers_segmentation(self, data, tmp_path, caplog):
        (tmp_path / "flat").mkdir()
        for subject in ("s0", "s1"):
            for file in (data / subject).iterdir():
                if file.name != "s1-seg.nii.gz":
                    shutil.copy(file, tmp_path / "flat" / file.name)
        found = build_cache(tmp_path / "flat", tmp_path / "cache")
        assert [s.labelled for s in found] == [True, False]
        assert "s1 has no segmentation (no s1-seg.nii.gz)" in caplog.text

    def test_fewer_than_two_subjects_is_an_error(self, spoiled, tmp_path):
        folder, _, _ = spoiled
        shutil.rmtree(folder / "s1")
        with pytest.raises(UsageError, match="fewer than two"):
            build_cache(folder, tmp_path / "cache")

    def test_it_is_used_again_but_not_for_other_data_or_normalisation(self, spoiled, tmp_path):
        folder, path, _ = spoiled
        build_cache(folder, tmp_path / "cache")
        assert len(build_cache(folder, tmp_path / "cache")) == 2
        with pytest.raises(UsageError, match="another normalisation"):
            build_cache(folder, tmp_path / "cache", Normalization("volume", background=0.0))
        path.unlink()
        with pytest.raises(UsageError, match="another data folder"):
            build_cache(folder, tmp_path / "cache")

    def test_an_interrupted_build_goes_on_where_it_was(self, data, tmp_path, monkeypatch):
        whole = build_cache(data, tmp_path / "whole")
        original = cache._write

        def interrupted(name, *arguments):
            if name == "s1":
                raise KeyboardInterrupt
            return original(name, *arguments)

        monkeypatch.setattr(cache, "_write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build_cache(data, tmp_path / "cache")
        begun = tmp_path / "cache" / "begun.jsonl"
        begun.write_text(begun.read_text() + '{"name": "s1", "lab')
        written = []
        monkeypatch.setattr(cache, "_write", lambda name, *rest: written.append(name) or original(name, *rest))
        found = build_cache(data, tmp_path / "cache")
        assert written == ["s1"]
        assert [s.name for s in found] == ["s0", "s1"]
        for one, other in zip(found, whole, strict=True):
            np.testing.assert_array_equal(one.scores, other.scores)
            assert one.intensities == other.intensities
        # Of another folder's build nothing is taken over.
        begun.write_text('{"schema": 0}\n{"name": "s0"}\n')
        (tmp_path / "cache" / "index.json").unlink()
        build_cache(data, tmp_path / "cache")
        assert written == ["s1", "s0", "s1"]

    def test_without_a_segmentation_a_subject_still_teaches_images(self, spoiled, tmp_path, caplog):
        folder, path, _ = spoiled
        path.unlink()
        found = build_cache(folder, tmp_path / "cache")
        assert found[1].labels is None
        assert "s1 has no segmentation" in caplog.text
        batch = Sampler(found, replace(DATA, tumour_share=0.99), -1.0)
        drawn = batch.draw(batch.plan(0), batch.own(0), 16)
        assert not drawn.labelled.all()
        assert not drawn.labels[~drawn.labelled].any()

    def test_what_was_mended_on_reading_is_told(self, spoiled, tmp_path, caplog):
        folder, _, _ = spoiled
        file = folder / "s1" / "s1-t1c.nii.gz"
        image = nib.load(file)
        values = image.get_fdata(dtype=np.float32)
        values[20, 20, 18:20] = np.nan
        broken = nib.Nifti1Image(values, image.affine)
        nib.save(broken, file)
        assert len(build_cache(folder, tmp_path / "cache")) == 2
        assert f"{file}: 2 voxels that were NaN or infinite were set to 0." in caplog.text

    def test_a_cache_that_is_there_says_whom_it_lacks(self, spoiled, tmp_path, caplog):
        caplog.set_level("INFO")
        folder, path, _ = spoiled
        path.unlink()
        write_phantom(make_phantom((40, 44, 36), 9), folder, "lacking", leave_out=("t1c",))
        build_cache(folder, tmp_path / "cache")
        assert "was made without" not in caplog.text
        caplog.clear()
        build_cache(folder, tmp_path / "cache")
        assert f"{tmp_path / 'cache'} was made without lacking" in caplog.text
        assert "no usable segmentation of s1:" in caplog.text

    def test_where_every_slice_shall_show_a_tumour_every_one_does(self, spoiled, tmp_path, caplog):
        folder, _, relabel = spoiled
        relabel(np.zeros_like)
        found = build_cache(folder, tmp_path / "cache")
        sampler = Sampler(found, replace(DATA, tumour_share=1.0), -1.0)
        assert "s1 is left out of the axial slices" in caplog.text
        drawn = sampler.draw(sampler.plan(0), sampler.own(0), 16)
        assert (drawn.labels > 0).any(dim=2).any(dim=1).all()
        with pytest.raises(UsageError, match="tumour pixels"):
            Sampler([s for s in found if s.name == "s1"], replace(DATA, tumour_share=1.0), -1.0)

    def test_a_damaged_cache_is_named(self, spoiled, tmp_path):
        folder, _, _ = spoiled
        found = build_cache(folder, tmp_path / "cache")
        array = tmp_path / "cache" / "s1.npy"
        for damage in (lambda: array.write_bytes(array.read_bytes()[:1000]), array.unlink):
            damage()
            cache.mapped.cache_clear()
            with pytest.raises(UsageError, match=r"s1\.npy is damaged or missing; delete"):
                _ = next(s for s in found if s.name == "s1").scores
        (tmp_path / "cache" / "index.json").write_text("{")
        with pytest.raises(UsageError, match=r"index\.json is damaged or missing; delete"):
            build_cache(folder, tmp_path / "cache")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (np.zeros_like, "empty segmentation"),
            (lambda labels: labels[:, :, 1:], "another grid"),
            (lambda labels: np.where(labels == 2, 9, labels), "labels that BraTS has not (9)"),
            (lambda labels: labels.astype(np.float32) * 0.5, "fractions"),
        ],
    )
    def test_odd_segmentations_are_named(self, spoiled, tmp_path, caplog, change, message):
        folder, _, relabel = spoiled
        relabel(change)
        found = build_cache(folder, tmp_path / "cache")
        assert len(found) == 2
        assert "s1" in caplog.text
        assert message in caplog.text

    def test_a_subject_without_a_common_brain_is_left_out(self, spoiled, tmp_path, caplog):
        folder, _, _ = spoiled
        write_phantom(make_phantom((40, 44, 36), 9), folder, "apart")
        for number, modality in enumerate(MODALITIES):
            path = folder / "apart" / f"apart-{modality}.nii.gz"
            image = nib.load(path)
            data = np.zeros(image.shape, np.int16)
            data[:, :, number] = np.arange(1, 41)[:, None]
            nib.save(nib.Nifti1Image(data, image.affine), path)
        assert [s.name for s in build_cache(folder, tmp_path / "cache")] == ["s0", "s1"]
        assert "apart is left out: its sequences show no common brain" in caplog.text

    def test_many_subjects_hold_few_files_open(self, subjects, monkeypatch):
        many = [replace(subjects[i % 2]) for i in range(600)]
        before = len(list(Path("/proc/self/fd").iterdir()))
        sampler = Sampler(many, DATA, -1.0)
        sampler.draw(sampler.plan(0), sampler.own(0), 64)
        assert len(list(Path("/proc/self/fd").iterdir())) - before < 20

    def test_label_four_beside_three_is_a_cavity(self, spoiled, tmp_path, caplog):
        folder, _, relabel = spoiled
        before = np.array(build_cache(folder, tmp_path / "one")[1].labels)
        relabel(lambda labels: np.where(labels == 1, 4, labels))
        found = np.array(build_cache(folder, tmp_path / "two")[1].labels)
        np.testing.assert_array_equal(found, np.where(before == 1, 0, before))
        assert "resection cavity" in caplog.text

    def test_label_four_is_three(self, spoiled, tmp_path):
        folder, _, relabel = spoiled
        before = np.array(build_cache(folder, tmp_path / "one")[1].labels)
        relabel(lambda labels: np.where(labels == 3, 4, labels))
        np.testing.assert_array_equal(before, build_cache(folder, tmp_path / "two")[1].labels)


class TestSampler:
    def _draw(self, subjects, step=0, size=6, shift=0, seed=0, rank=0, **changes):
        sampler = Sampler(subjects, replace(DATA, **changes), -1.0, seed=seed, rank=rank)
        return sampler.draw(sampler.plan(step), sampler.own(step), size, shift)

    def test_seed_step_and_process_decide(self, subjects):
        one, two = self._draw(subjects), self._draw(subjects)
        assert torch.equal(one.images, two.images)
        assert one.images.shape == (6, 4, 48, 48)
        for other in ({"seed": 1}, {"step": 1}, {"rank": 1}):
            drawn = self._draw(subjects, **other)
            assert drawn.images.shape == one.images.shape
            assert not torch.equal(one.images, drawn.images)
        assert self._draw(subjects, rank=1).view == one.view

    def test_images_brain_labels_and_scale_belong_together(self, subjects):
        batch = self._draw(subjects, size=8, shift=4, tumour_share=1.0)
        outside = batch.brain[:, 0] == 0
        assert (batch.images.movedim(1, -1)[outside] == -1).float().mean() > 0.97
        assert not batch.labels[outside].any()
        assert (batch.labels > 0).any()
        low, high = batch.scale[..., 0], batch.scale[..., 1]
        assert (low < -1).all()
        assert (batch.images.amax(dim=(2, 3)) <= high + 0.01).all()

    def test_every_view_target_and_subset_comes(self, subjects):
        sampler = Sampler(subjects, replace(DATA, single_missing=0.3), -1.0)
        tasks = [sampler.tasks(sampler.plan(step), 1)[0] for step in range(200)]
        assert {len(t.members) for t in tasks} == {1, 2, 3}
        assert {t.target for t in tasks} == set(range(len(MODALITIES)))
        assert all(t.target not in t.members and t.second != t.target for t in tasks)
        views = {self._draw(subjects, step=step, size=1).view for step in range(30)}
        assert views == set(range(len(VIEWS)))

    def test_algorithm_one_makes_each_in_turn(self, subjects):
        sampler = Sampler(subjects, DATA, -1.0)
        tasks = sampler.tasks(sampler.plan(0), 4)
        assert [t.target for t in tasks] == [0, 1, 2, 3]
        assert all(len(t.members) == 3 for t in tasks)

    def test_a_network_of_some_sequences_learns_to_make_those_only(self, subjects):
        sampler = Sampler(subjects, replace(DATA, makes=("t1c", "t2w"), single_missing=0.5), -1.0)
        tasks = [sampler.tasks(sampler.plan(step), 1)[0] for step in range(50)]
        assert {MODALITIES[t.target] for t in tasks} == {"t1c", "t2w"}
        assert {m for t in tasks for m in t.members} == set(range(len(MODALITIES)))
        assert [MODALITIES[t.target] for t in sampler.tasks(sampler.plan(0), 2)] == ["t1c", "t2w"]

    def test_tumour_types_come_equally_often(self, subjects):
        many = [replace(subjects[0], tumour_type="GLI") for _ in range(9)]
        rare = replace(subjects[1], tumour_type="MET")
        for balance, low, high in ((True, 0.35, 0.65), (False, 0.0, 0.25)):
            batch = self._draw([*many, rare], size=200, balance_types=balance)
            share = float((batch.types == 1).float().mean())
            assert low <= share <= high

    @pytest.mark.parametrize(("share", "pixels"), [(0.001, 9), (0.01, 92)])
    def test_a_slice_of_the_tumour_shows_enough_of_it(self, subjects, share, pixels):
        sampler = {"views": ("sagittal",), "sagittal": (96, 96), "tumour_share": 1.0, "min_tumour_share": share}
        batch = self._draw(subjects, size=150, **sampler)
        assert (batch.labels > 0).sum(dim=(1, 2)).min() >= pixels
        # There are slices with less, which are drawn as any other.
        counts = subjects[1].tumour_pixels["sagittal"][subjects[1].slices("sagittal", 200)]
        assert ((counts > 0) & (counts < pixels)).any()

    def test_reading_ahead_gives_the_same(self, subjects):
        sampler = Sampler(subjects, DATA, -1.0)
        plain, ahead = Source(sampler, 2, 3), Source(sampler, 2, 3, ahead=True)
        for step in (0, 1, 2, 2, 7, 8):
            one, two = plain.at(step), ahead.at(step)
            assert torch.equal(one.batch.images, two.batch.images)
            assert one.own.random() == two.own.random()
            assert one.plan.random() == two.plan.random()

    def test_donors_show_a_tumour_and_leave_the_batch_as_it_is(self, subjects):
        sampler = Sampler(subjects, DATA, -1.0)
        plain, giving = Source(sampler, 8, 3), Source(sampler, 8, 3, donors=True)
        views = set()
        for step in range(6):
            alone, drawn = plain.at(step), giving.at(step)
            assert alone.donors is None
            assert torch.equal(alone.batch.images, drawn.batch.images)
            assert drawn.donors.view == drawn.batch.view
            assert (drawn.donors.labels > 0).flatten(1).any(dim=1).all()
            assert not torch.equal(drawn.donors.images, drawn.batch.images)
            views.add(drawn.batch.view)
        assert len(views) > 1

    def test_no_slice_with_enough_brain(self, subjects):
        with pytest.raises(UsageError, match="no subject has a"):
            Sampler(subjects, replace(DATA, min_brain_pixels=10**6), -1.0)

    def test_pieces_are_the_whole(self, subjects):
        batch = self._draw(subjects, size=5)
        parts = batch.pieces(2)
        assert [len(p) for p in parts] == [3, 2]
        assert torch.equal(torch.cat([p.images for p in parts]), batch.images)


class TestAugmentation:
    @pytest.fixture
    def batch(self, subjects):
        sampler = Sampler(subjects, replace(DATA, views=("axial",), tumour_share=1.0), -1.0)
        return sampler.draw(sampler.plan(0), sampler.own(0), 6)

    def test_nothing_changes_nothing(self, batch):
        random = np.random.default_rng(0)
        assert torch.equal(vary_geometry(batch, NOTHING, random, -1.0).images, batch.images)
        assert torch.equal(vary_intensities(batch, NOTHING, random, -1.0), batch.images)

    def test_a_flip_mirrors_left_and_right_of_everything(self, batch):
        flipped = vary_geometry(batch, replace(NOTHING, flip=1), np.random.default_rng(0), -1.0)
        assert torch.equal(flipped.images, batch.images.flip(2))
        assert torch.equal(flipped.labels, batch.labels.flip(1))
        assert torch.equal(flipped.brain, batch.brain.flip(2))

    def test_sagittal_slices_have_no_left(self, batch):
        sagittal = replace(batch, view=VIEWS.index("sagittal"))
        kept = vary_geometry(sagittal, replace(NOTHING, flip=1), np.random.default_rng(0), -1.0)
        assert torch.equal(kept.images, batch.images)

    def test_turning_and_resizing_move_all_together(self, batch):
        turned = vary_geometry(batch, replace(NOTHING, rotate=20, zoom=0.1), np.random.default_rng(0), -1.0)
        assert not torch.equal(turned.images, batch.images)
        outside = turned.brain[:, 0] == 0
        assert (turned.images.movedim(1, -1)[outside] == -1).all()
        assert set(torch.unique(turned.labels).tolist()) <= set(torch.unique(batch.labels).tolist())
        # The tumour's enhancing rim is the brightest of T1c before and after.
        for b in (batch, turned):
            rim, rest = b.images[:, 0][b.labels == 3], b.images[:, 0][(b.labels == 0) & (b.brain[:, 0] > 0)]
            assert rim.median() > rest.quantile(0.9)

    @pytest.fixture
    def donors(self, subjects):
        sampler = Sampler(subjects, replace(DATA, views=("axial",), tumour_share=1.0), -1.0)
        return sampler.draw(sampler.plan(5), sampler.own(5), 6)

    def test_a_transplanted_tumour_brings_every_sequence_and_its_labels(self, batch, donors):
        mixed = transplant_tumours(batch, donors, 1.0, np.random.default_rng(0))
        both = (batch.brain * donors.brain)[:, 0] > 0
        tumour = (donors.labels > 0) & both
        assert tumour.any()
        assert torch.equal(mixed.labels[tumour], donors.labels[tumour])
        low, high = batch.scale[:, :, 0, None, None], batch.scale[:, :, 1, None, None]
        whole = tumour[:, None].expand_as(batch.images)
        assert torch.allclose(mixed.images[whole], donors.images.clamp(low, high)[whole], atol=1e-5)
        assert not torch.equal(mixed.images[whole], batch.images[whole])

    def test_far_from_the_tumour_and_outside_the_brain_all_stays(self, batch, donors):
        small = donors.labels.clone()
        small[:, :, 20:] = 0
        donors = replace(donors, labels=small)
        mixed = transplant_tumours(batch, donors, 1.0, np.random.default_rng(0))
        outside = (batch.brain * donors.brain == 0).expand_as(batch.images)
        # The margin is 6 pixels at most, the edge 4 more.
        assert torch.equal(mixed.images[..., 30:], batch.images[..., 30:])
        assert torch.equal(mixed.images[outside], batch.images[outside])
        assert not torch.equal(mixed.images, batch.images)
        assert torch.equal(mixed.brain, batch.brain)

    def test_only_the_chosen_slices_get_a_tumour_and_only_from_one_who_has_it(self, batch, donors):
        for share, giving in ((0.0, donors), (1.0, replace(donors, labels=torch.zeros_like(donors.labels)))):
            kept = transplant_tumours(batch, giving, share, np.random.default_rng(0))
            assert torch.equal(kept.images, batch.images)
            assert torch.equal(kept.labels, batch.labels)
        counts = [
            (transplant_tumours(batch, donors, 0.5, np.random.default_rng(s)).images != batch.images)
            .flatten(1).any(dim=1).sum().item()
            for s in range(20)
        ]  # fmt: skip
        assert 0.3 < np.mean(counts) / len(batch) < 0.7

    def _drawn(self, subjects):
        drawn = Source(Sampler(subjects, DATA, -1.0), 6, 0, donors=True).at(1)
        given = (drawn.donors.labels > 0) & (drawn.batch.brain[:, 0] > 0) & (drawn.donors.brain[:, 0] > 0)
        return drawn, given

    def _varied(self, drawn, **recipe):
        return vary_slices(drawn, replace(NOTHING, transplant=1.0, **recipe), torch.device("cpu"), -1.0)

    def test_a_step_with_donors_moves_them_apart_from_the_receivers(self, subjects):
        drawn, given = self._drawn(subjects)
        varied, seen = self._varied(drawn)
        assert torch.equal(varied.brain, drawn.batch.brain)
        assert torch.equal(varied.labels[given], drawn.donors.labels[given])
        assert torch.equal(seen, varied.images)
        turned, _ = self._varied(self._drawn(subjects)[0], rotate=30.0)
        assert not torch.equal(turned.labels[given], drawn.donors.labels[given])

    def test_a_hidden_tumour_is_missing_from_one_input_and_from_nothing_that_is_made(self, subjects):
        drawn, given = self._drawn(subjects)
        truth, seen = self._varied(drawn, hidden=1.0)
        assert torch.equal(truth.labels[given], drawn.donors.labels[given])
        changed = (truth.images != drawn.batch.images).flatten(2).any(dim=2)
        shown = (seen != drawn.batch.images).flatten(2).any(dim=2)
        assert changed.all()
        assert (shown.sum(dim=1) == 3).all()
        assert len({row.int().argmin().item() for row in shown}) > 1
        for i, j in shown.nonzero().tolist():
            assert torch.equal(seen[i, j], truth.images[i, j])
        half, seen = self._varied(self._drawn(subjects)[0], hidden=0.5)
        counts = (seen == half.images).flatten(2).all(dim=2).sum(dim=1).tolist()
        assert set(counts) == {3, 4}

    @staticmethod
    def _contrast(batch, images):
        """(slices, sequences) means of the tumour over those of the healthy brain of the slice."""
        tumour = (batch.labels[:, None] > 0).float()
        healthy = batch.brain * (1 - tumour)
        inside, around = ((images * m).sum((2, 3)) / m.sum((2, 3)).clamp(min=1) for m in (tumour, healthy))
        return inside - around

    def test_a_faded_tumour_stands_out_less_sequence_by_sequence(self, batch):
        before = self._contrast(batch, batch.images)
        strong = before.abs() > 0.3
        assert strong.sum() > 10
        left = []
        for seed in range(5):
            after = self._contrast(batch, fade_tumours(batch, 1.0, np.random.default_rng(seed)))
            left.append((after / before)[strong])
        left = torch.cat(left)
        # Between turned round and untouched, and every way in between.
        assert left.max() < 1.05
        assert left.min() < -0.1
        assert 0.2 < float((left < 0.25).float().mean()) < 0.8

    def test_fading_leaves_all_but_tumours_and_keeps_within_the_scans_range(self, batch):
        faded = fade_tumours(batch, 1.0, np.random.default_rng(0))
        ill = torch.nn.functional.max_pool2d((batch.labels[:, None] > 0).float(), 3, 1, 1) * batch.brain > 0
        assert torch.equal(faded[(~ill).expand_as(faded)], batch.images[(~ill).expand_as(faded)])
        low, high = batch.scale[:, :, 0, None, None], batch.scale[:, :, 1, None, None]
        inside = ill.expand_as(faded)
        assert (faded >= low)[inside].all()
        assert (faded <= high)[inside].all()
        healthy = replace(batch, labels=torch.zeros_like(batch.labels))
        assert torch.equal(fade_tumours(healthy, 1.0, np.random.default_rng(0)), batch.images)

    def test_a_share_of_inputs_is_faded_and_never_what_is_made(self, batch, subjects):
        changed = [
            (fade_tumours(batch, 0.4, np.random.default_rng(s)) != batch.images).flatten(2).any(dim=2).float().mean()
            for s in range(30)
        ]
        assert 0.3 < np.mean(changed) < 0.5
        drawn = Source(Sampler(subjects, replace(DATA, tumour_share=1.0), -1.0), 6, 0).at(0)
        truth, seen = vary_slices(drawn, replace(NOTHING, fade=1.0), torch.device("cpu"), -1.0)
        assert torch.equal(truth.images, drawn.batch.images)
        assert not torch.equal(seen, truth.images)

    def test_a_recoloured_tumour_has_any_shade_and_only_the_tumour_changes(self, batch):
        ill = torch.nn.functional.max_pool2d((batch.labels[:, None] > 0).float(), 3, 1, 1) * batch.brain > 0
        deep = (batch.labels == 2)[:, None] & ill
        shades = []
        for seed in range(10):
            random = np.random.default_rng(seed)
            recoloured = recolour_tumours(batch, random)
            assert torch.equal(recoloured[(~ill).expand_as(recoloured)], batch.images[(~ill).expand_as(recoloured)])
            faded = fade_tumours(batch, 1.0, np.random.default_rng(seed))
            moved = ((recoloured - faded) * deep).sum((2, 3)) / deep.sum((2, 3)).clamp(min=1)
            shades.append(moved[deep.any(-1).any(-1)[:, 0]].flatten())
        shades = torch.cat(shades)
        assert shades.max() > 0.3
        assert shades.min() < -0.3
        assert abs(float(shades.mean())) < 0.15

    def test_poor_inputs_are_two_or_three_and_what_is_made_is_untouched(self, subjects, batch):
        drawn = Source(Sampler(subjects, replace(DATA, tumour_share=1.0), -1.0), 6, 0).at(0)
        truth, seen = vary_slices(drawn, replace(NOTHING, poor=1.0), torch.device("cpu"), -1.0)
        assert torch.equal(truth.images, drawn.batch.images)
        assert not torch.equal(seen, truth.images)
        counts = set()
        for seed in range(10):
            spoilt = spoil_images(batch, replace(NOTHING, poor=1.0), np.random.default_rng(seed), -1.0)
            # Nor does a scan reach further than it did.
            outside = (batch.brain == 0) | (batch.images == -1.0)
            assert torch.equal(spoilt[outside], batch.images[outside])
            assert torch.isfinite(spoilt).all()
            poor = (spoilt != batch.images).flatten(2).any(dim=2)
            counts |= set(poor.sum(dim=1).tolist())
        assert counts == {2, 3}
        shares = [
            (spoil_images(batch, replace(NOTHING, poor=0.4), np.random.default_rng(seed), -1.0) != batch.images)
            .flatten(1).any(dim=1).float().mean()
            for seed in range(30)
        ]  # fmt: skip
        assert 0.3 < np.mean(shares) < 0.5

    def test_poor_slices_are_thick_along_one_axis(self, batch):
        grain = torch.rand(batch.images.shape) * 2 - 1
        batch = replace(batch, brain=torch.ones_like(batch.brain), images=grain, labels=torch.zeros_like(batch.labels))
        spoilt = spoil_images(batch, replace(NOTHING, poor=1.0), np.random.default_rng(0), -1.0)
        poor = (spoilt != grain).flatten(2).any(dim=2)
        assert poor.sum() >= 2 * len(batch)
        axes = set()
        for i, j in poor.nonzero().tolist():
            # Neighbours in one slice of the acquisition agree, far more often than in noise.
            rough = [float(spoilt[i, j].diff(n=2, dim=axis).abs().median()) for axis in (0, 1)]
            axes.add(int(np.argmin(rough)))
            assert min(rough) < 0.25 * float(grain[i, j].diff(n=2, dim=0).abs().median())
        assert axes == {0, 1}

    def test_poor_slices_lose_contrast(self, batch):
        inside = (batch.brain > 0).expand_as(batch.images)
        left = []
        for seed in range(10):
            spoilt = spoil_images(batch, replace(NOTHING, poor=1.0), np.random.default_rng(seed), -1.0)
            for i, j in (spoilt != batch.images).flatten(2).any(dim=2).nonzero().tolist():
                seen = inside[i, j] & (batch.images[i, j] != -1.0)
                left.append(float(spoilt[i, j][seen].std() / batch.images[i, j][seen].std()))
        assert np.mean(left) < 0.8
        assert min(left) < 0.4

    @pytest.mark.parametrize("modality", ["t1n", "t2f"])
    def test_one_sequence_is_recoloured_alone_and_nothing_in_a_healthy_slice(self, batch, modality):
        recipe = replace(NOTHING, **{f"recolour_{modality}": 1.0})
        changed = spoil_images(batch, recipe, np.random.default_rng(0), -1.0) != batch.images
        which = changed.flatten(2).any(dim=2)
        assert which[:, MODALITIES.index(modality)].all()
        assert which.sum() == len(batch)
        healthy = replace(batch, labels=torch.zeros_like(batch.labels))
        assert torch.equal(spoil_images(healthy, recipe, np.random.default_rng(0), -1.0), batch.images)

    def test_a_quarter_turn_is_exact(self, batch):
        from app.training.data.augmentation import _grid

        square = batch.images[:1, :1]
        grid = _grid(np.array([np.pi / 2]), np.array([1.0]), square)
        turned = torch.nn.functional.grid_sample(square, grid, align_corners=False)
        ways = [torch.rot90(square, k, (2, 3)) for k in (1, 3)]
        assert min(float((turned - w).abs().max()) for w in ways) < 1e-3

    def test_thick_slices_blur_some_inputs_along_one_axis(self, batch):
        batch = replace(batch, brain=torch.ones_like(batch.brain), images=torch.randn(batch.images.shape))
        thick = vary_intensities(batch, replace(NOTHING, thick=6.0), np.random.default_rng(0), -1.0)
        # Differences between neighbours, as a share of those before, along rows and columns.
        shares = torch.stack([thick.diff(dim=d).abs().mean((2, 3)) / batch.images.diff(dim=d).abs().mean((2, 3))
                              for d in (2, 3)])  # fmt: skip
        rough, blurred = (shares > 0.999).all(dim=0), (shares < 0.5).any(dim=0)
        # Half are left alone, and a third of the rest: their slices lie in the plane.
        assert 0.4 < float(rough.float().mean()) < 0.9
        assert blurred.any()
        assert not torch.equal(blurred[:, :1].expand(-1, 4), blurred)

    @pytest.mark.parametrize("what", ["contrast", "brightness", "gamma", "bias", "noise", "thick"])
    def test_brightness_varies_in_the_brain_only_and_by_the_seed(self, batch, what):
        recipe = replace(NOTHING, **{what: 4.0 if what == "thick" else 0.2})
        one, two, other = (vary_intensities(batch, recipe, np.random.default_rng(s), -1.0) for s in (1, 1, 2))
        assert torch.equal(one, two)
        assert not torch.equal(one, other)
        outside = (batch.brain == 0).expand_as(one)
        assert torch.equal(one[outside], batch.images[outside])
        assert torch.isfinite(one).all()
        assert 0 < float((one - batch.images).abs().mean()) < 0.5
