"""Real scans, where they are at hand: other orientations and grids, another disease, exams that are refused."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app.batch import exit_code_of, run
from app.config import RunConfig

pytestmark = pytest.mark.data


def _reorient(source: Path, destination: Path, axes: str) -> None:
    image = nib.load(source)
    wanted = nib.orientations.axcodes2ornt(tuple(axes))
    moved = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted))
    nib.save(moved, destination)


def test_a_flipped_copy_gives_the_same_anatomy(data_dir, tmp_path):
    subject = "Brats18_CBICA_AME_1"
    for axes in ("LPS", "RAS"):
        place = tmp_path / axes / subject
        place.mkdir(parents=True)
        for modality in ("t1c", "t1n", "t2w"):
            name = f"{subject}-{modality}.nii.gz"
            _reorient(data_dir / "val" / subject / name, place / name, axes)
        run(RunConfig(tmp_path / axes, tmp_path / f"{axes}-out", on_error="stop"))
    name = f"{subject}-t2f.nii.gz"
    straight, flipped = nib.load(tmp_path / "LPS-out" / name), nib.load(tmp_path / "RAS-out" / name)
    assert nib.aff2axcodes(flipped.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(np.asarray(flipped.dataobj)[::-1, ::-1], np.asarray(straight.dataobj))


class TestClinical:
    def test_another_disease_grid_and_orientation(self, data_dir, tmp_path):
        place = tmp_path / "in" / "ms07-mni"
        place.mkdir(parents=True)
        for modality in ("t1c", "t1n", "t2w"):
            name = f"ms07-mni-{modality}.nii.gz"
            (place / name).symlink_to(data_dir / "clinical" / "ms07-mni" / name)
        assert exit_code_of(run(RunConfig(tmp_path / "in", tmp_path / "out", on_error="stop"))) == 0
        made = nib.load(tmp_path / "out" / "ms07-mni-t2f.nii.gz")
        reference = nib.load(place / "ms07-mni-t2w.nii.gz")
        assert made.shape == (182, 218, 182)
        np.testing.assert_array_equal(made.affine, reference.affine)
        assert (int(made.header["qform_code"]), int(made.header["sform_code"])) == (1, 0)
        assert made.get_data_dtype() == np.float32

    @pytest.mark.parametrize("policy", ["fallback", "skip"])
    def test_three_grids_are_refused(self, data_dir, tmp_path, policy):
        (tmp_path / "in").mkdir()
        (tmp_path / "in" / "ms01-raw").symlink_to(data_dir / "clinical" / "ms01-raw")
        summary = run(RunConfig(tmp_path / "in", tmp_path / "out", on_error=policy))
        assert exit_code_of(summary) == 1
        assert "different grids" in (summary.outcomes[0].error or "")
        assert "register and resample" in (summary.outcomes[0].error or "")
        assert not os.listdir(tmp_path / "out")

    def test_thick_slices_are_refused_with_advice(self, data_dir, tmp_path):
        place = tmp_path / "in" / "tcga-02-0054"
        place.mkdir(parents=True)
        for name in ("t1", "t1ce", "t2"):
            file = f"tcga-02-0054_{name}.nii.gz"
            (place / file).symlink_to(data_dir / "clinical" / "tcga-02-0054" / file)
        summary = run(RunConfig(tmp_path / "in", tmp_path / "out"))
        assert exit_code_of(summary) == 1
        assert "256x256x23" in (summary.outcomes[0].error or "")
        assert "resample" in (summary.outcomes[0].error or "")
