"""Real scans, where they are at hand: valid outputs and known scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app.batch.outcomes import exit_code_of
from app.batch.run import run
from app.core.config import ModelOptions, RunConfig
from app.core.constants import MODALITIES, REFERENCE_OF, Modality
from app.data.nifti_reader import load_volume
from app.evaluation.metrics.ssim import official_score
from app.preprocessing.normalization import rescale_as_scored
from app.preprocessing.similarity import ssim_map

pytestmark = pytest.mark.data


def _drop(source: Path, root: Path, target: str) -> Path:
    """A BraSyn folder in which every subject of `source` lacks one sequence (links, no copies)."""
    for subject in sorted(source.iterdir()):
        _drop_one(subject, root / subject.name, target)
    return root


def _drop_one(subject: Path, place: Path, target: str) -> None:
    place.mkdir(parents=True)
    for modality in MODALITIES:
        if modality != target:
            scan = subject / f"{subject.name}-{modality}.nii.gz"
            (place / f"{place.name}-{modality}.nii.gz").symlink_to(scan.resolve())


@pytest.mark.parametrize("target", ["t1c", "t2f"])
def test_every_validation_subject_gets_a_valid_output(data_dir, tmp_path, target):
    source = _drop(data_dir / "val", tmp_path / "in", target)
    assert (
        exit_code_of(run(RunConfig(source, tmp_path / "out", model=ModelOptions(model="regression"), on_error="stop")))
        == 0
    )
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


def _scores(
    data_dir: Path, tmp_path: Path, model: str | None, targets: Sequence[Modality] = MODALITIES
) -> dict[Modality, np.ndarray]:
    """Official healthy, official tumour and SSIM inside the brain, per sequence dropped, of one subject."""
    subject = "Brats18_CBICA_ATD_1"
    folder = data_dir / "val" / subject
    exams = tmp_path / "in"
    for target in targets:
        # Named after the dropped sequence: one run makes all.
        _drop_one(folder, exams / f"{target}-{subject}", target)
    # Without the mirrored pass, which averages errors out but costs as much again.
    options = ModelOptions(model=model, flip_average=False)
    run(RunConfig(exams, tmp_path / "out", model=options, on_error="stop"))
    tumour = load_volume(folder / f"{subject}-seg.nii.gz").data > 0
    scores = {}
    for target in targets:
        synthesis = load_volume(tmp_path / "out" / f"{target}-{subject}-{target}.nii.gz").data
        truth = load_volume(folder / f"{subject}-{target}.nii.gz").data
        inside = ssim_map(rescale_as_scored(synthesis), rescale_as_scored(truth))[truth > 0].mean()
        scores[target] = np.array([*official_score(synthesis, truth, tumour), inside])
    return scores


@pytest.fixture(scope="module")
def regression(data_dir, tmp_path_factory) -> dict[Modality, np.ndarray]:
    return _scores(data_dir, tmp_path_factory.mktemp("regression"), "regression")


def test_the_regression_scores_what_it_should(regression):
    """One subject, four drops; the whole table is in docs/RESULTS.md."""
    assert (np.mean(list(regression.values()), axis=0) > [0.92, 0.99, 0.5]).all()


@pytest.mark.parametrize("target", ["t1c"])
def test_the_default_model_is_at_least_as_good_as_the_regression(data_dir, tmp_path, regression, target):
    """The hardest sequence and an easy one, each for itself; the floors of all four stand with the weights."""
    assert (_scores(data_dir, tmp_path, None, [target])[target] >= regression[target] - 1e-6).all()
