from __future__ import annotations

import numpy as np
import pytest

from app.core.constants import MODALITIES, subset_key
from app.core.errors import UsageError
from app.data.discovery import scan
from app.data.phantom import make_phantom, write_phantom
from app.networks.voxelwise_regression import VoxelwiseRegression
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import measure, normalize
from app.preprocessing.target_intensity import IntensityPredictor
from app.registry.checkpoints import load_regression
from app.registry.lineage import read_lineage
from app.training.intensity_fit import NORMALIZATION, fit, fit_and_write, subsets


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
