from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.data.nifti_reader import load_volume
from app.data.phantom import make_phantom, write_phantom
from app.preprocessing.normalization import Normalization, measure
from app.training.data import cache
from app.training.data.cache import NORMALIZATION, build_cache
from app.training.data.sections import SliceData
from app.training.data.slices import Sampler
from tests.training.helpers import changed

DATA = SliceData(axial=(48, 48), sagittal=(48, 48), coronal=(48, 48), min_brain_pixels=200)


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
        inside = np.asarray(subject.normalized[3], dtype=np.float32)[subject.brain]
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

    def test_one_subject_is_enough_where_a_sequence_is_withheld(self, spoiled, tmp_path):
        folder, _, _ = spoiled
        shutil.rmtree(folder / "s1")
        assert len(build_cache(folder, tmp_path / "cache", NORMALIZATION, "t2w")) == 1
        with pytest.raises(UsageError, match="another withheld sequence"):
            build_cache(folder, tmp_path / "cache", NORMALIZATION, "t1c")
        next(folder.rglob("*t1n*")).unlink()
        with pytest.raises(
            UsageError, match="has t1c, t1n, t2f that can be read; give a folder of exams that lack t2w"
        ):
            build_cache(folder, tmp_path / "other", NORMALIZATION, "t2w")

    def test_it_is_used_again_but_not_for_other_data_or_normalisation(self, spoiled, tmp_path):
        folder, path, _ = spoiled
        build_cache(folder, tmp_path / "cache")
        assert len(build_cache(folder, tmp_path / "cache")) == 2
        with pytest.raises(UsageError, match="another normalisation"):
            build_cache(folder, tmp_path / "cache", Normalization("volume", background=0.0))
        path.unlink()
        with pytest.raises(UsageError, match="another data folder"):
            build_cache(folder, tmp_path / "cache")

    def test_it_serves_a_copy_of_the_data_but_not_other_content_of_the_same_size(self, data, tmp_path, monkeypatch):
        build_cache(data, tmp_path / "cache")
        # Not copy2: the copy is newer.
        copied = shutil.copytree(data, tmp_path / "copied", copy_function=shutil.copyfile)
        monkeypatch.setattr("app.training.data.cache._write", None)
        assert len(build_cache(copied, tmp_path / "cache")) == 2
        file = next(copied.rglob("*t1n.nii.gz"))
        content = bytearray(file.read_bytes())
        content[-8] ^= 1
        file.write_bytes(content)
        with pytest.raises(UsageError, match="another data folder"):
            build_cache(copied, tmp_path / "cache")

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
            np.testing.assert_array_equal(one.normalized, other.normalized)
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
        batch = Sampler(found, changed(DATA, tumour_share=0.99), -1.0)
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
        sampler = Sampler(found, changed(DATA, tumour_share=1.0), -1.0)
        assert "s1 is left out of the axial slices" in caplog.text
        drawn = sampler.draw(sampler.plan(0), sampler.own(0), 16)
        assert (drawn.labels > 0).any(dim=2).any(dim=1).all()
        with pytest.raises(UsageError, match="tumour pixels"):
            Sampler([s for s in found if s.name == "s1"], changed(DATA, tumour_share=1.0), -1.0)

    def test_a_damaged_cache_is_named(self, spoiled, tmp_path):
        folder, _, _ = spoiled
        found = build_cache(folder, tmp_path / "cache")
        array = tmp_path / "cache" / "s1.npy"
        for damage in (lambda: array.write_bytes(array.read_bytes()[:1000]), array.unlink):
            damage()
            cache.mapped.cache_clear()
            with pytest.raises(UsageError, match=r"s1\.npy is damaged or missing; delete"):
                _ = next(s for s in found if s.name == "s1").normalized
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
