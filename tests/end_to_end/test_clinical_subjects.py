"""Real scans, where they are at hand: other orientations and grids, another disease, exams that are refused."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app import Synthesizer
from app.batch.outcomes import exit_code_of
from app.batch.run import run
from app.core.config import ModelOptions, RunConfig
from app.data.nifti_reader import load_volume
from app.inference.pipeline import prepare

pytestmark = pytest.mark.data


def _linked(data_dir: Path, tmp_path: Path, subject: str, names: list[str]) -> Path:
    """An input folder with some files of one clinical subject (links, no copies); returns the subject's folder."""
    place = tmp_path / "in" / subject
    place.mkdir(parents=True)
    for name in names:
        (place / name).symlink_to(data_dir / "clinical" / subject / name)
    return place


def _reorient(source: Path, destination: Path, axes: str) -> None:
    image = nib.load(source)
    wanted = nib.orientations.axcodes2ornt(tuple(axes))
    moved = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted))
    nib.save(moved, destination)


def test_a_flipped_copy_gives_the_same_anatomy(data_dir, tmp_path):
    """By the fastest model; that networks see no difference either is shown on phantoms."""
    subject = "Brats18_CBICA_AME_1"
    for axes in ("LPS", "RAS"):
        place = tmp_path / axes / subject
        place.mkdir(parents=True)
        for modality in ("t1c", "t1n", "t2w"):
            name = f"{subject}-{modality}.nii.gz"
            _reorient(data_dir / "val" / subject / name, place / name, axes)
        run(
            RunConfig(
                tmp_path / axes, tmp_path / f"{axes}-out", model=ModelOptions(model="regression"), on_error="stop"
            )
        )
    name = f"{subject}-t2f.nii.gz"
    straight, flipped = nib.load(tmp_path / "LPS-out" / name), nib.load(tmp_path / "RAS-out" / name)
    assert nib.aff2axcodes(flipped.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(np.asarray(flipped.dataobj)[::-1, ::-1], np.asarray(straight.dataobj))


class TestClinical:
    def test_another_disease_grid_and_orientation(self, data_dir, tmp_path):
        names = [f"ms07-mni-{m}.nii.gz" for m in ("t1c", "t1n", "t2w")]
        place = _linked(data_dir, tmp_path, "ms07-mni", names)
        config = RunConfig(tmp_path / "in", tmp_path / "out", model=ModelOptions(flip_average=False), on_error="stop")
        assert exit_code_of(run(config)) == 0
        made = nib.load(tmp_path / "out" / "ms07-mni-t2f.nii.gz")
        reference = nib.load(place / "ms07-mni-t2w.nii.gz")
        assert made.shape == (182, 218, 182)
        np.testing.assert_array_equal(made.affine, reference.affine)
        assert (int(made.header["qform_code"]), int(made.header["sform_code"])) == (1, 0)
        assert made.get_data_dtype() == np.float32

    def test_the_enhancer_brightens_gliomas_and_no_exam_without_a_tumour(self, data_dir):
        """Behind a first stage that shows no enhancement at all, where it could do most."""
        maker = Synthesizer(device="cpu").model.model_for("t1c")
        assert maker.refiner is not None
        brighter = {}
        for subject in ("clinical/ms07-mni", "val/Brats18_2013_3_1", "val/Brats18_CBICA_AME_1"):
            place = data_dir / subject
            volumes = {m: load_volume(place / f"{place.name}-{m}.nii.gz") for m in ("t1n", "t2w", "t2f")}
            prepared = prepare(volumes, maker)
            plain = np.where(prepared.foreground, np.float32(0), np.float32(prepared.padding))
            made = maker.refiner.refine(plain, prepared.normalized, "t1c", prepared.foreground, prepared.padding)
            brighter[place.name] = int((made - plain > 0.5).sum())
        without, *gliomas = brighter.values()
        assert without < 200, "a fifth of a millilitre"
        assert min(gliomas) > 5000, brighter

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
        _linked(data_dir, tmp_path, "tcga-02-0054", [f"tcga-02-0054_{n}.nii.gz" for n in ("t1", "t1ce", "t2")])
        summary = run(RunConfig(tmp_path / "in", tmp_path / "out"))
        assert exit_code_of(summary) == 1
        assert "256x256x23" in (summary.outcomes[0].error or "")
        assert "resample" in (summary.outcomes[0].error or "")
