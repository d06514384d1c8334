from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from app.core.constants import MODALITIES, subset_key
from app.core.errors import UsageError
from app.data.discovery import scan
from app.data.nifti_reader import load_volume
from app.data.phantom import make_phantom, write_phantom
from app.inference.pipeline import prepare
from app.networks.voxelwise_regression import VoxelwiseRegression
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import measure, normalize
from app.preprocessing.target_intensity import IntensityPredictor, MedianPredictor
from app.registry.checkpoints import load_regression
from app.registry.lineage import read_lineage
from app.training.data.cache import NORMALIZATION as TRAINING
from app.training.data.cache import build_cache
from app.training.intensity_fit import (
    NORMALIZATION,
    IntensityCodes,
    fit,
    fit_and_write,
    fit_intensity_conditioning,
    medians_of,
    subsets,
)


def test_subsets():
    pairs = list(subsets())
    assert len(pairs) == 28
    assert len({subset_key(i, t) for i, t in pairs}) == 28


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


def test_fit_and_write_gives_a_loadable_model(folder, tmp_path):
    entry = fit_and_write(folder, tmp_path / "w")
    assert read_lineage(entry.folder).trainings[entry.sha256].subjects == ("s0", "s1", "s2")
    assert load_regression(entry).coefficients


def test_fewer_than_two_subjects_is_an_error(tmp_path):
    write_phantom(make_phantom((40, 44, 36), 1), tmp_path, "only")
    with pytest.raises(UsageError, match="fewer than two"):
        fit(scan(tmp_path).cases)


class TestConditioning:
    """The median that a network gets."""

    @pytest.fixture
    def subjects(self, training_data, training_cache):
        return build_cache(training_data, training_cache)

    def test_medians_are_of_the_brain_in_scores(self, subjects):
        subject = subjects[0]
        found = medians_of(subject)
        scores = np.asarray(subject.normalized, dtype=np.float32)[:, np.asarray(subject.brain)]
        np.testing.assert_allclose([found[m] for m in MODALITIES], np.median(scores, axis=1), atol=1e-6)
        assert all(-1 < v < 1 for v in found.values())

    def test_the_mean_is_the_same_for_everybody(self, subjects):
        prior, medians = fit_intensity_conditioning(subjects, "mean")
        told = IntensityCodes(prior, subjects, medians).of(torch.arange(3), (0, 1, 2), 3)
        assert len(told.unique()) == 1
        assert float(told[0]) == pytest.approx(np.mean([m["t2w"] for m in medians]), abs=1e-5)

    def test_the_real_median_is_never_told(self, subjects):
        """Another truth of the subject itself, with the predictor as it is, changes nothing of what it is told."""
        prior, medians = fit_intensity_conditioning(subjects, "predicted")
        before = IntensityCodes(prior, subjects, medians).of(torch.tensor([1]), (0, 1, 2), 3)
        changed = [{**m, "t2w": 7.0} for m in medians]
        assert torch.equal(IntensityCodes(prior, subjects, changed).of(torch.tensor([1]), (0, 1, 2), 3), before)

    @pytest.mark.parametrize("kind", ["mean", "predicted"])
    def test_training_tells_what_use_tells(self, subjects, training_data, kind):
        """The same number from the cache, in training, as from the files, in use."""
        prior, medians = fit_intensity_conditioning(subjects, kind)
        adapter = TypeAdapter(MedianPredictor)
        stored = adapter.validate_json(adapter.dump_json(prior))
        told = IntensityCodes(prior, subjects, medians)
        for number, subject in enumerate(subjects):
            volumes = {
                m: load_volume(training_data / subject.name / f"{subject.name}-{m}.nii.gz")
                for m in ("t1c", "t1n", "t2w")
            }
            prepared = prepare(volumes, _model())
            used = stored.predict(prepared.measured, prepared.medians, "t2f")
            assert float(told.of(torch.tensor([number]), (0, 1, 3), 2)) == pytest.approx(used, abs=2e-2)
        if kind == "predicted":
            assert len(told.of(torch.arange(3), (0, 1, 3), 2).unique()) > 1

    def test_none_is_fitted_where_none_is_asked_for(self, subjects):
        assert fit_intensity_conditioning(subjects, "none") is None


def _model():
    """What `prepare` looks at of a model."""
    return SimpleNamespace(spec=SimpleNamespace(normalization=TRAINING), precompute=lambda _: None)
