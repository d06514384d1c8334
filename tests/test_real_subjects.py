"""Real scans, where they are at hand: valid outputs, known scores, odd clinical exams."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app.batch import exit_code_of, run
from app.config import RunConfig
from app.constants import MODALITIES, REFERENCE_OF
from app.metrics.official import normalise, official_score, ssim_map
from app.volume import load_volume

pytestmark = pytest.mark.data


def _drop(source: Path, root: Path, target: str) -> Path:
    """A BraSyn folder in which every subject of `source` lacks one sequence (links, no copies)."""
    for subject in sorted(source.iterdir()):
        place = root / subject.name
        place.mkdir(parents=True)
        for modality in MODALITIES:
            if modality != target:
                name = f"{subject.name}-{modality}.nii.gz"
                (place / name).symlink_to((subject / name).resolve())
    return root


def _reorient(source: Path, destination: Path, axes: str) -> None:
    image = nib.load(source)
    wanted = nib.orientations.axcodes2ornt(tuple(axes))
    moved = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted))
    nib.save(moved, destination)


def _one_subject(data_dir: Path, tmp_path: Path, subject: str) -> Path:
    """A folder with one validation subject alone."""
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / subject).symlink_to(data_dir / "val" / subject)
    return tmp_path / "val"


@pytest.mark.parametrize("target", MODALITIES)
def test_every_validation_subject_gets_a_valid_output(data_dir, tmp_path, target):
    source = _drop(data_dir / "val", tmp_path / "in", target)
    assert exit_code_of(run(RunConfig(source, tmp_path / "out", model="regression", on_error="stop"))) == 0
    outputs = sorted((tmp_path / "out").iterdir())
    assert [p.name for p in outputs] == [f"{p.name}-{target}.nii.gz" for p in sorted(source.iterdir())]
    for path in outputs:
        subject = path.name.removesuffix(f"-{target}.nii.gz")
        made = nib.load(path)
        reference = nib.load(source / subject / f"{subject}-{REFERENCE_OF[target]}.nii.gz")
        for field in ("dim", "sform_code", "qform_code", "xyzt_units", "srow_x", "srow_y", "srow_z", "datatype"):
            np.testing.assert_array_equal(made.header[field], reference.header[field], err_msg=field)
        np.testing.assert_array_equal(made.affine, reference.affine)
        values = np.asarray(made.dataobj)
        inputs = [np.asarray(nib.load(p).dataobj) for p in (source / subject).iterdir()]
        assert (values[np.sum([i <= 0 for i in inputs], axis=0) >= 2] == 0).all()
        assert np.isfinite(values).all()
        assert values.min() == 0
        assert values.std() > 0


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


def _scores(data_dir: Path, tmp_path: Path, model: str | None) -> np.ndarray:
    """Official healthy, official tumour and SSIM inside the brain: means over the four drops of one subject."""
    subject = "Brats18_CBICA_ATD_1"
    folder = data_dir / "val" / subject
    alone = _one_subject(data_dir, tmp_path, subject)
    tumour = load_volume(folder / f"{subject}-seg.nii.gz").data > 0
    rows = []
    for target in MODALITIES:
        source = _drop(alone, tmp_path / target, target)
        run(RunConfig(source, tmp_path / "out", model=model, on_error="stop"))
        made = load_volume(tmp_path / "out" / f"{subject}-{target}.nii.gz").data
        truth = load_volume(folder / f"{subject}-{target}.nii.gz").data
        inside = ssim_map(normalise(made), normalise(truth))[truth > 0].mean()
        rows.append([*official_score(made, truth, tumour), inside])
    return np.mean(rows, axis=0)


def test_the_regression_scores_what_it_should(data_dir, tmp_path):
    """One subject, four drops; the whole table is in weights/MODEL_CARD.md."""
    assert (_scores(data_dir, tmp_path, "regression") > [0.92, 0.99, 0.5]).all()


def test_the_default_model_is_at_least_as_good_as_the_regression(data_dir, tmp_path):
    default, regression = (_scores(data_dir, _made(tmp_path / str(m)), m) for m in (None, "regression"))
    assert (default >= regression - 1e-6).all()


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


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
