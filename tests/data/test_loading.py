from __future__ import annotations

import gzip
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from app.core.constants import MODALITIES
from app.core.errors import CaseError
from app.data.discovery import inspect, scan
from app.data.loading import input_warnings, load_complete, load_inputs
from app.data.nifti_reader import load_volume


def _case(files):
    return inspect("sub01", {m: [f] for m, f in files.items()})


def _make_empty(path):
    """Leaves a file whose voxels are nowhere finite, as only decoding shows."""
    image = nib.load(path)
    data = np.full(image.shape, np.nan, np.float32)
    nib.save(nib.Nifti1Image(data, image.affine), path)


class TestLoadInputs:
    def test_it_decodes_what_the_plan_asks_for(self, subject):
        case, todo, volumes = load_inputs(_case(subject), "skip")
        assert case.usable == todo.inputs == tuple(volumes) == ("t1c", "t1n", "t2w")
        assert todo.targets == ("t2f",)

    def test_a_complete_subject_is_not_decoded(self, tmp_path, write_subject):
        _, todo, volumes = load_inputs(_case(write_subject(tmp_path / "s", lacks=())), "skip")
        assert (todo.targets, volumes) == ((), {})

    def test_a_fault_that_decoding_shows_is_planned_again(self, subject):
        content = bytearray(gzip.decompress(subject["t2w"].read_bytes()))
        broken = bytearray(gzip.compress(bytes(content)))
        broken[len(broken) // 2] ^= 0xFF
        subject["t2w"].write_bytes(broken)
        with pytest.raises(CaseError, match="t2w"):
            load_inputs(_case(subject), "skip")
        case, todo, volumes = load_inputs(_case(subject), "fallback")
        assert "t2w" in case.faults
        assert todo.fallback
        assert set(volumes) == {"t1c", "t1n"}

    def test_emptiness_that_decoding_shows_is_planned_again(self, subject):
        case = _case(subject)
        _make_empty(subject["t1c"])
        # As if the header alone had not shown it.
        case = replace(case, grids={m: replace(grid, stamp=None) for m, grid in case.grids.items()})
        case, todo, volumes = load_inputs(case, "skip")
        assert "counts as missing" in case.empty["t1c"]
        assert todo.targets == ("t2f",)
        assert set(volumes) == {"t1n", "t2w"}

    def test_a_file_that_was_replaced_since_it_was_found_is_refused(self, subject):
        case = _case(subject)
        image = nib.load(subject["t1c"])
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), subject["t1c"])
        with pytest.raises(CaseError, match=r"sub01-t1c\.nii\.gz was changed while it was read"):
            load_inputs(case, "skip")
        assert load_inputs(case, "fallback")[1].inputs == ("t1n", "t2w")


class TestInputWarnings:
    def test_a_good_exam_has_none(self, subject):
        assert input_warnings({m: load_volume(f) for m, f in subject.items()}) == []

    def test_spacing_and_a_bright_border_are_named(self, tmp_path, write_subject):
        files = write_subject(tmp_path / "s", affine=np.diag([-2.0, -2, 2, 1]))
        for path in files.values():
            image = nib.load(path)
            air = np.random.default_rng(0).integers(10, 40, image.shape, np.int16)
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + air, image.affine), path)
        spacing, border = input_warnings({m: load_volume(f) for m, f in files.items()})
        assert "at 2x2x2 mm" in spacing
        assert "no dark border" in border

    def test_a_skull_in_blackened_air_is_named(self, tmp_path, write_subject):
        files = write_subject(tmp_path / "s")
        radius = np.sqrt(sum(g**2 for g in np.meshgrid(*[np.linspace(-1, 1, n) for n in (48, 56, 40)], indexing="ij")))
        for path in files.values():
            image = nib.load(path)
            data = np.where(radius < 0.75, np.asarray(image.dataobj), 0) + 900 * ((radius > 0.86) & (radius < 0.97))
            nib.save(nib.Nifti1Image(data.astype(np.int16), image.affine), path)
        (warning,) = input_warnings({m: load_volume(f) for m, f in files.items()})
        assert "is not skull-stripped" in warning


class TestLoadComplete:
    def test_it_yields_complete_subjects_and_names_the_others(self, tmp_path, write_subject, caplog):
        write_subject(tmp_path / "good", lacks=())
        write_subject(tmp_path / "lacking", lacks=("t1c",))
        files = write_subject(tmp_path / "moved", lacks=())
        image = nib.load(files["t2w"])
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.diag([-1.5, -1, 1, 1])), files["t2w"])
        files = write_subject(tmp_path / "broken", lacks=())
        files["t1n"].write_text("x")
        ((name, volumes),) = load_complete(scan(tmp_path).cases)
        assert name == "good"
        assert tuple(volumes) == MODALITIES
        assert "lacking is left out: it lacks t1c." in caplog.text
        assert "moved is left out: its sequences are on different grids." in caplog.text
        assert "broken is left out: " in caplog.text

    def test_a_withheld_sequence_may_lack_or_be_broken(self, tmp_path, write_subject, caplog):
        write_subject(tmp_path / "lacking", lacks=("t1c",))
        write_subject(tmp_path / "complete", lacks=())["t1c"].write_text("x")
        write_subject(tmp_path / "poor", lacks=("t1c", "t2w"))
        subjects = dict(load_complete(scan(tmp_path).cases, "t1c"))
        assert sorted(subjects) == ["complete", "lacking"]
        assert {tuple(volumes) for volumes in subjects.values()} == {("t1n", "t2f", "t2w")}
        assert "poor is left out: it lacks t2w." in caplog.text

    def test_a_subject_comes_once(self, tmp_path, write_subject, caplog):
        write_subject(tmp_path / "s", lacks=())
        (case,) = scan(tmp_path).cases
        assert len(list(load_complete([case, case]))) == 1
        assert "A second s is left out" in caplog.text

    def test_sequences_without_a_common_brain(self, tmp_path, write_subject, caplog):
        for modality, path in write_subject(tmp_path / "s", lacks=()).items():
            data = np.zeros((48, 56, 40), np.int16)
            data[10 * MODALITIES.index(modality) :][:5] = 9
            nib.save(nib.Nifti1Image(data, np.diag([-1.0, -1, 1, 1])), path)
        assert list(load_complete(scan(tmp_path).cases)) == []
        assert "show no common brain" in caplog.text
