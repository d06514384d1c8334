from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.constants import MODALITIES
from app.core.errors import WeightsError
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import (
    BRASYN25_INTENSITIES,
    Intensity,
    Normalization,
    denormalize,
    measure,
    normalize,
)
from app.preprocessing.target_intensity import IntensityPredictor

VOLUME = Normalization("volume", background=-1.0)
DATASET = Normalization("dataset", background=-1.0, intensities=BRASYN25_INTENSITIES)


def _volume(seed: int, scale: float = 1.0) -> np.ndarray:
    random = np.random.default_rng(seed)
    volume = random.gamma(4, 100 * scale, (20, 20, 20)).astype(np.float32)
    volume[random.random(volume.shape) < 0.6] = 0
    return volume


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), scale=st.floats(0.01, 1000), scheme=st.sampled_from([VOLUME, DATASET]))
def test_denormalize_is_the_inverse_up_to_the_clip(seed, scale, scheme):
    volume = _volume(seed, scale)
    intensity = measure(volume, "t1c", scheme)
    normalized = normalize(volume, intensity, scheme.background)
    back = denormalize(normalized, intensity, volume > 0)
    np.testing.assert_allclose(back, np.minimum(volume, intensity.clip), rtol=1e-4, atol=1e-4 * intensity.std)
    assert (back[volume == 0] == 0).all()


def test_volume_scheme_gives_brain_mean_0_deviation_1():
    volume = _volume(1)
    normalized = normalize(volume, measure(volume, "t2w", VOLUME), VOLUME.background)
    brain = normalized[volume > 0]
    assert abs(brain.mean()) < 1e-4
    assert abs(brain.std() - 1) < 1e-4
    assert (normalized[volume == 0] == -1).all()


def test_clip_is_at_the_percentile_of_non_zero_voxels():
    volume = _volume(2)
    assert measure(volume, "t2w", VOLUME).clip == pytest.approx(np.percentile(volume[volume > 0], 99.5))


def test_dataset_scheme_is_the_released_one():
    volume = np.array([0.0, 100.0, 9000.0], dtype=np.float32).reshape(1, 1, 3)
    normalized = normalize(volume, measure(volume, "t1c", DATASET), -1.0)
    expected = [-1.0, (100 - 1066.3375) / 1301.7006, (8664 - 1066.3375) / 1301.7006]
    np.testing.assert_allclose(normalized.ravel(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "count,dark,expected",
    [(3, 1, True), (3, 2, False), (3, 3, False), (2, 1, True), (2, 2, False), (1, 0, True), (1, 1, False)],
)
def test_background_is_where_most_inputs_are(count, dark, expected):
    volumes = {
        m: np.full((1, 1, 1), 0.0 if i < dark else 5.0, dtype=np.float32) for i, m in enumerate(MODALITIES[:count])
    }
    assert bool(vote_foreground(volumes)[0, 0, 0]) is expected


@pytest.mark.parametrize("scheme", [VOLUME, DATASET])
def test_the_manifest_form_is_a_round_trip(scheme):
    assert Normalization.from_json(json.loads(json.dumps(scheme.to_json()))) == scheme


def test_unknown_scheme_is_refused():
    with pytest.raises(WeightsError, match="update Tetrad"):
        Normalization.from_json({"scheme": "histogram"})


def test_two_valued_volume_has_a_deviation():
    volume = np.zeros((10, 10, 10), dtype=np.float32)
    volume[2:8] = 100
    assert math.isfinite(float(normalize(volume, measure(volume, "t1n", VOLUME), -1.0).max()))


class TestIntensityPredictor:
    @settings(max_examples=20, deadline=None)
    @given(factor=st.floats(0.01, 100))
    def test_it_scales_with_its_inputs(self, factor):
        predictor = _predictor()
        inputs = {m: Intensity(mean=300.0 + 40 * i, std=100.0 + 7 * i) for i, m in enumerate(MODALITIES[:3])}
        larger = {m: Intensity(mean=i.mean * factor, std=i.std * factor) for m, i in inputs.items()}
        one, other = predictor.predict(inputs, "t2w"), predictor.predict(larger, "t2w")
        assert other.std == pytest.approx(one.std * factor, rel=1e-6)
        assert other.mean == pytest.approx(one.mean * factor, rel=1e-6)

    def test_the_ratio_stays_within_what_was_seen(self):
        predictor = _predictor()
        for ratio in (0.1, 3, 40):
            inputs = {m: Intensity(mean=ratio * 100.0, std=100.0) for m in MODALITIES[:3]}
            made = predictor.predict(inputs, "t2w")
            low, high = predictor.ratio_range["t2w"]
            assert low - 1e-9 <= made.mean / made.std <= high + 1e-9

    def test_there_is_one_for_every_subset_and_target(self):
        assert len(_predictor().coefficients) == 28


def _predictor() -> IntensityPredictor:
    from app.core.config import WEIGHTS_DIR
    from app.registry.checkpoints import load_intensity
    from app.registry.manifest import read_manifest

    loaded = load_intensity(read_manifest(WEIGHTS_DIR).entry("regression"))
    assert loaded is not None
    return loaded
