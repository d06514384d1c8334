from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from app.core.constants import MODALITIES
from app.preprocessing.normalization import (
    Intensity,
)
from app.preprocessing.target_intensity import IntensityPredictor, MedianPredictor, intensity_features, median_features


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


class TestFeatures:
    @given(factor=st.floats(0.01, 100), count=st.integers(1, 3))
    def test_they_do_not_know_the_unit(self, factor, count):
        inputs = {m: Intensity(300.0 + 50 * i, 100.0 + 9 * i) for i, m in enumerate(MODALITIES[:count])}
        larger = {m: Intensity(i.mean * factor, i.std * factor) for m, i in inputs.items()}
        one, scale = intensity_features(inputs)
        other, scaled = intensity_features(larger)
        assert one.shape == (1 + 2 * count,)
        np.testing.assert_allclose(one, other, atol=1e-9)
        assert scaled - scale == pytest.approx(np.log(factor), abs=1e-9)

    def test_medians_follow_in_challenge_order(self):
        inputs = {m: Intensity(300.0, 100.0) for m in ("t2w", "t1c")}
        features = median_features(inputs, {"t2w": 0.4, "t1c": 0.1})
        np.testing.assert_array_equal(features[-2:], [0.1, 0.4])
        assert len(features) == 7


MEANS = {m: 0.1 * i for i, m in enumerate(MODALITIES)}


class TestMedianPredictor:
    def test_the_mean_needs_no_input(self):
        predictor = MedianPredictor(MEANS)
        assert predictor.predict({}, {}, "t2w") == pytest.approx(0.3)
        form = TypeAdapter(MedianPredictor)
        assert form.validate_json(form.dump_json(predictor)) == predictor

    def test_a_prediction_stays_within_its_span(self):
        predictor = MedianPredictor(MEANS, {"t1c>t2w": (0.0, 0.0, 0.0, 2.0)}, {"t2w": (-0.2, 0.2)})
        inputs = {"t1c": Intensity(300.0, 100.0)}
        values = [predictor.predict(inputs, {"t1c": median}, "t2w") for median in (-5.0, 0.05, 5.0)]
        assert values == pytest.approx([-0.2, 0.1, 0.2])

    @pytest.mark.parametrize("form", [{}, {"means": dict.fromkeys(MODALITIES)}, {"means": {"t9": 0.1}}])
    def test_damaged_medians_are_refused(self, form):
        with pytest.raises(ValidationError, match="means"):
            TypeAdapter(MedianPredictor).validate_python(form)
