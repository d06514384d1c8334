from __future__ import annotations

import numpy as np
import pytest
import torch

from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError
from app.data.discovery import scan
from app.data.nifti_reader import load_volume
from app.data.phantom import make_phantom, write_phantom
from app.networks.voxelwise_regression import VoxelwiseRegression
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import Intensity, Normalization, measure, normalize
from app.preprocessing.target_intensity import IntensityPredictor, brain_median
from app.registry.checkpoints import load_regression
from app.registry.lineage import read_lineage
from app.training.data.cache import build_cache
from app.training.fits.intensity import (
    NORMALIZATION,
    IntensityCodes,
    fit,
    fit_and_write,
    fit_intensity,
    fit_intensity_prior,
    medians_of,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("train")
    for seed in range(3):
        write_phantom(make_phantom((40, 44, 36), seed), place, f"s{seed}")
    write_phantom(make_phantom((40, 44, 36), 9), place, "lacking", leave_out=("t1c",))
    return place


def test_fit_recovers_what_it_can_and_leaves_out_by_name(folder, caplog):
    fitted = fit(scan(folder).cases)
    assert fitted.subjects == ["s0", "s1", "s2"]
    assert "lacking is left out" in caplog.text
    regression = VoxelwiseRegression.from_json(fitted.voxelwise())
    volumes = make_phantom((40, 44, 36), 7).volumes
    scores = {m: normalize(v, measure(v, m, NORMALIZATION), None) for m, v in volumes.items()}
    for target in MODALITIES:
        inputs = {m: s for m, s in scores.items() if m != target}
        brain = vote_foreground({m: volumes[m] for m in inputs})
        made = regression.predict(inputs, target, brain)
        best_copy = max(abs(np.corrcoef(s[brain], scores[target][brain])[0, 1]) for s in inputs.values())
        # Better than copying the most similar input, on a subject that was not fitted.
        assert np.corrcoef(made[brain], scores[target][brain])[0, 1] > best_copy
        assert (made[~brain] == 0).all()


def test_intensity_is_predicted_for_phantoms(folder):
    fitted = fit(scan(folder).cases)
    predictor = IntensityPredictor.from_json(fitted.intensity())
    measured = {m: measure(v, m, NORMALIZATION) for m, v in make_phantom((40, 44, 36), 7).volumes.items()}
    for target in MODALITIES:
        made = predictor.predict({m: i for m, i in measured.items() if m != target}, target)
        assert made.std == pytest.approx(measured[target].std, rel=0.25)
        assert made.mean == pytest.approx(measured[target].mean, rel=0.25)


def test_a_t1_of_an_unusual_ratio_follows_the_other_t1():
    def exam(ratio: float) -> dict[Modality, Intensity]:
        return {m: Intensity(100 * (ratio if m in {"t1n", "t1c"} else 3.0), 100.0) for m in MODALITIES}

    form = fit_intensity([exam(3 * 1.03**i) for i in range(31)])
    inputs = {m: i for m, i in exam(6.0).items() if m != "t1c"}
    made = IntensityPredictor.from_json(form).predict(inputs, "t1c")
    assert made.mean / made.std == pytest.approx(6.0, rel=0.1)


def test_fit_and_write_gives_a_loadable_model(folder, tmp_path):
    entry = fit_and_write(folder, tmp_path / "w")
    assert read_lineage(entry.folder).trainings[entry.sha256].subjects == ("s0", "s1", "s2")
    assert load_regression(entry).coefficients


def test_fewer_than_two_subjects_is_an_error(tmp_path):
    write_phantom(make_phantom((40, 44, 36), 1), tmp_path, "only")
    with pytest.raises(UsageError, match="fewer than two"):
        fit(scan(tmp_path).cases)


@pytest.fixture(scope="module")
def subjects(training_data, tmp_path_factory):
    scheme = Normalization("range", background=-1.0)
    return build_cache(training_data, tmp_path_factory.mktemp("range"), scheme)


class TestIntensityEncoding:
    """The median that a network gets while it learns, and the prior that takes its place."""

    def test_medians_are_the_true_ones_from_0_to_1(self, subjects, training_data):
        subject = subjects[0]
        volumes = {m: load_volume(training_data / subject.name / f"{subject.name}-{m}.nii.gz").data for m in MODALITIES}
        brain, scheme = vote_foreground(volumes), Normalization("range", background=-1.0)
        for modality, median in medians_of(subject).items():
            volume = volumes[modality]
            assert median == pytest.approx(brain_median(volume, brain, measure(volume, modality, scheme)), abs=1e-3)
            assert 0 < median < 1

    def test_training_gets_each_subject_s_own(self, subjects):
        codes = IntensityCodes(subjects)
        for target, modality in enumerate(MODALITIES):
            numbers = torch.tensor([2, 0])
            expected = [medians_of(subjects[2])[modality], medians_of(subjects[0])[modality]]
            assert codes.of(numbers, target).tolist() == pytest.approx(expected, abs=1e-6)

    def test_the_prior_is_their_mean_and_deviation(self, subjects):
        prior, rows = fit_intensity_prior(subjects), [medians_of(s) for s in subjects]
        for modality in MODALITIES:
            assert prior.means[modality] == pytest.approx(np.mean([r[modality] for r in rows]), abs=1e-6)
            assert prior.deviations[modality] == pytest.approx(np.std([r[modality] for r in rows]), abs=1e-6)
