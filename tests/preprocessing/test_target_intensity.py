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
from app.preprocessing.target_intensity import (
    KAIST24_PRIOR,
    IntensityPredictor,
    IntensityPrior,
    brain_median,
    intensity_features,
)


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

    @pytest.mark.parametrize(("ratio", "expected"), [(4.0, 2 * 4.0**0.5), (100.0, 6.0), (0.01, 1.5)])
    def test_a_logarithmic_one_multiplies_powers_of_ratios(self, ratio, expected):
        row = (np.log(2.0), 0.5, 0.0)
        predictor = IntensityPredictor({"t1n>t1c": (row, (0.0, 0.0, 0.0))}, {"t1c": (1.5, 6.0)}, logarithmic=True)
        made = predictor.predict({"t1n": Intensity(mean=50.0 * ratio, std=50.0)}, "t1c")
        assert made.mean / made.std == pytest.approx(expected)
        assert made.std == pytest.approx(50.0)

    def test_what_version_0_1_wrote_is_linear(self):
        rows = {"t1n>t1c": [[1.0, 0.5, 0.0], [0.0, 0.0, 0.0]]}
        form = {"coefficients": rows, "ratio_range": {m: [0.5, 9.0] for m in MODALITIES}}
        for stated, expected in (({}, 3.0), ({"logarithmic": True}, np.exp(1.0) * 2)):
            made = IntensityPredictor.from_json(form | stated).predict({"t1n": Intensity(400.0, 100.0)}, "t1c")
            assert made.mean / made.std == pytest.approx(expected)

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
    @given(factor=st.floats(0.01, 100), count=st.integers(1, 3), logarithmic=st.booleans())
    def test_they_do_not_know_the_unit(self, factor, count, logarithmic):
        inputs = {m: Intensity(300.0 + 50 * i, 100.0 + 9 * i) for i, m in enumerate(MODALITIES[:count])}
        larger = {m: Intensity(i.mean * factor, i.std * factor) for m, i in inputs.items()}
        one, scale = intensity_features(inputs, logarithmic)
        other, scaled = intensity_features(larger, logarithmic)
        assert one.shape == (1 + 2 * count,)
        np.testing.assert_allclose(one, other, atol=1e-9)
        assert scaled - scale == pytest.approx(np.log(factor), abs=1e-9)


class TestIntensityPrior:
    def test_the_published_one(self):
        # Appendix A.1 of the BraSyn 2024 winner.
        assert (KAIST24_PRIOR.means["t1n"], KAIST24_PRIOR.deviations["t1n"]) == (0.4332, 0.1003)
        assert (KAIST24_PRIOR.means["t2w"], KAIST24_PRIOR.deviations["t2w"]) == (0.2498, 0.0626)
        assert (KAIST24_PRIOR.means["t2f"], KAIST24_PRIOR.deviations["t2f"]) == (0.3034, 0.1017)
        assert (KAIST24_PRIOR.means["t1c"], KAIST24_PRIOR.deviations["t1c"]) == (0.2404, 0.0623)

    def test_the_mean_and_a_number_ask_nothing_of_the_exam(self):
        assert KAIST24_PRIOR.value("t2w", "mean", {}) == 0.2498
        assert KAIST24_PRIOR.value("t2w", "0.375", {}) == 0.375

    @given(st.integers(1, 10**6))
    def test_a_sample_is_within_two_deviations_and_seeded_by_the_exam(self, brightness):
        exam = {"t1c": Intensity(100.0, 100.0, 200.0), "t1n": Intensity(brightness, brightness, 2 * brightness)}
        value = KAIST24_PRIOR.value("t2f", "sample", exam)
        assert abs(value - 0.3034) <= 2 * 0.1017 + 1e-9
        assert value == KAIST24_PRIOR.value("t2f", "sample", dict(reversed(exam.items())))

    def test_samples_have_the_prior_s_spread(self):
        exams = [{"t1c": Intensity(float(i), float(i), 2.0 * i)} for i in range(1, 2001)]
        values = np.array([KAIST24_PRIOR.value("t1n", "sample", exam) for exam in exams])
        assert values.mean() == pytest.approx(0.4332, abs=0.01)
        # Of a normal distribution whose tails are brought to two deviations.
        assert values.std() == pytest.approx(0.96 * 0.1003, abs=0.005)
        assert (values != KAIST24_PRIOR.value("t2w", "sample", exams[0])).all()

    def test_json_and_back(self):
        form = TypeAdapter(IntensityPrior)
        assert form.validate_json(form.dump_json(KAIST24_PRIOR)) == KAIST24_PRIOR

    @pytest.mark.parametrize("form", [{"deviations": {}}, {"means": {"t9": 0.1}, "deviations": {}}])
    def test_a_damaged_one_is_refused(self, form):
        with pytest.raises(ValidationError, match="means"):
            TypeAdapter(IntensityPrior).validate_python(form)


def test_a_brain_s_median_is_a_share_of_the_clip():
    # Section 2.1, by hand: the median of 20, 40, 60 is 40, half of a clip of 80; of values beyond the clip it is 1.
    volume, brain = np.array([0, 20, 40, 60, 0], np.float32), np.array([0, 1, 1, 1, 0], bool)
    assert brain_median(volume, brain, Intensity(40.0, 40.0, 80.0)) == 0.5
    assert brain_median(volume, brain, Intensity(15.0, 15.0, 30.0)) == 1.0
