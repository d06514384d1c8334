from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.core.constants import MODALITIES
from app.preprocessing.normalization import (
    Intensity,
)
from app.preprocessing.target_intensity import IntensityPredictor


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
