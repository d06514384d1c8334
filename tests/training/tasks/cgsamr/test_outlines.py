from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from app.core.errors import UsageError
from app.training.data.slices import SampledStep
from app.training.tasks.cgsamr import outlines
from app.training.tasks.cgsamr.outlines import slices_of, training_atlas
from app.training.tasks.cgsamr.recipe import OutlineData
from tests.training.tasks.cgsamr.helpers import opened


def test_slices_as_networks_see_them(paired_subjects, training_data):
    task, source = opened(paired_subjects, training_data)
    recipe, sample = task.recipe, source.at(0)
    slices = slices_of(sample, recipe.augmentation, recipe.architecture, task.device)
    assert slices.inputs.shape == (2, 25, 64, 64)
    assert torch.equal(slices.exam, sample.batch.images[:, :4].clamp(-1, 1))
    brain, lesion = sample.batch.brain[:, 0] > 0, sample.batch.labels > 0
    assert torch.equal(slices.inputs[:, 0] == 1, brain & ~lesion)
    assert torch.equal(slices.inputs[:, 1:4].sum(1) > 0, brain & lesion)
    assert (slices.masks.sum(1) == 1).all()
    assert (slices.inputs[:, 4:].movedim(1, -1)[~brain] == -1).all()
    assert [len(part) for part in slices.pieces(2)] == [1, 1]


def test_the_prior_lies_on_the_slice(paired_subjects, training_data):
    """The middle slice of the atlas looks more like the exam than the atlas of any shifted slice."""
    task, source = opened(paired_subjects, training_data)
    slices = slices_of(source.at(3), task.recipe.augmentation, task.recipe.architecture, task.device)
    inside = slices.masks[:, 1] > 0
    t1n, atlas = slices.exam[:, 1], slices.inputs[:, 4 + 3 * 1 + 1]
    apart = atlas.roll(8, dims=2)
    assert (t1n - atlas).abs()[inside].mean() < 0.8 * (t1n - apart).abs()[inside].mean()


def test_everything_moves_together(paired_subjects, training_data):
    """Of a mirrored batch the prior is mirrored as well."""
    task, source = opened(paired_subjects, training_data)
    sample, recipe = source.at(0), task.recipe
    plain = slices_of(sample, recipe.augmentation, recipe.architecture, task.device)
    flip = recipe.augmentation.model_copy(update={"flip": 1.0})
    again = SampledStep(sample.batch, np.random.default_rng(0), np.random.default_rng(0))
    mirrored = slices_of(again, flip, recipe.architecture, task.device)
    assert torch.equal(mirrored.inputs, plain.inputs.flip(2))
    assert torch.equal(mirrored.exam, plain.exam.flip(2))


def test_tissues_come_from_0_to_1(paired_subjects, training_data):
    task, source = opened(paired_subjects, training_data, recipe="ucgsamr_compact")
    slices = slices_of(source.at(0), task.recipe.augmentation, task.recipe.architecture, task.device)
    assert slices.inputs.shape[1] == 7
    assert 0 <= slices.inputs[:, 4:].min() <= slices.inputs[:, 4:].max() <= 1.001


class TestTissue:
    def test_it_is_found_once_and_again_when_the_images_are_others(self, paired_subjects, training_data, monkeypatch):
        found = []
        real = outlines.own_tissue
        monkeypatch.setattr(outlines, "own_tissue", lambda *a: (found.append(1), real(*a))[1])
        for subject in paired_subjects:
            outlines._tissue_path(subject).unlink(missing_ok=True)
        opened(paired_subjects, training_data, recipe="ucgsamr_compact")
        opened(paired_subjects, training_data, recipe="cgsamr_compact")
        assert len(found) == len(paired_subjects)
        first = paired_subjects[0]
        os.utime(first.folder / f"{first.name}.npy")
        opened(paired_subjects, training_data, recipe="cgsamr_compact")
        assert len(found) == len(paired_subjects) + 1

    def test_every_tenth_slice_does_without(self, paired_subjects, training_data):
        task, source = opened(paired_subjects, training_data, recipe="cgsamr_compact")
        subject, size = paired_subjects[0], paired_subjects[0].brain.shape
        for index in (10, 11):
            average = task.atlas.prior("subject", size, index)[12:]
            shown = source.sampler._images(subject, "axial", index)[16:]
            assert np.array_equal(shown, average) == (index == 10)


class TestAtlas:
    def test_it_is_made_once(self, paired_subjects, training_data):
        first = training_atlas(OutlineData(), paired_subjects, training_data)
        files = sorted(paired_subjects[0].folder.glob("atlas-*.safetensors"))
        before = [f.stat().st_mtime_ns for f in files]
        again = training_atlas(OutlineData(), paired_subjects, training_data)
        assert torch.equal(first.images, again.images)
        assert [f.stat().st_mtime_ns for f in files] == before
        assert first.frame.shape == (40, 44, 36)
        assert first.frame.spacing == (1, 1, 1)
        assert training_atlas(OutlineData(), paired_subjects[:2], training_data).subjects == 2

    def test_larger_voxels(self, paired_subjects, training_data):
        whole = training_atlas(OutlineData(), paired_subjects, training_data)
        small = training_atlas(OutlineData(atlas_voxel=2.0), paired_subjects, training_data)
        assert small.images.shape[1:] == tuple(-(-count // 2) for count in whole.images.shape[1:])
        assert small.extent == whole.extent

    def test_a_file_of_the_recipe(self, paired_subjects, training_data, tmp_path):
        atlas = training_atlas(OutlineData(), paired_subjects, training_data)
        (tmp_path / "a.safetensors").write_bytes(atlas.to_bytes())
        given = training_atlas(OutlineData(atlas=str(tmp_path / "a.safetensors")), paired_subjects, training_data)
        assert torch.equal(given.brain, atlas.brain)
        with pytest.raises(UsageError, match="is no atlas"):
            training_atlas(OutlineData(atlas=str(tmp_path / "b")), paired_subjects, training_data)


def test_outlines_of_the_unpaired_training_are_of_other_slices(paired_subjects, training_data):
    _, source = opened(paired_subjects, training_data, recipe="ucgsamr_compact")
    exams, outlines = source.at(0).batch, source.outlines_at(0).batch
    assert not torch.equal(exams.labels, outlines.labels)
    _, paired = opened(paired_subjects, training_data)
    assert torch.equal(paired.at(0).batch.labels, paired.outlines_at(0).batch.labels)
