from __future__ import annotations

import json
from dataclasses import replace

import pytest

from app.core.constants import MODALITIES
from app.preprocessing.expected_quality import (
    FEATURES,
    Estimate,
    Expectation,
    LinearEstimate,
    QualityModel,
    features,
    in_brief,
    reaches,
)
from tests.preprocessing.quality import quality_file, quality_model

STATISTICS = {
    "brain ml": 1400.0,
    "t1n coarseness": 2.0,
    "t2w coarseness": 4.0,
    "t1n t2w correlation": -0.5,
    "t1n t2f correlation": 0.1,
}

RANGES = {"brain ml": (1200.0, 1600.0), "t1n coarseness": (1.0, 1.4), "t2w coarseness": (1.0, 3.0)}


def test_features():
    found = features(STATISTICS, 0.6, 0.5)
    assert found == pytest.approx(
        {"trial": 0.6, "disagreement": -0.6931, "coarseness": 1.3863, "relation": 0.3}, abs=1e-4
    )


class TestEstimates:
    def test_a_constant_for_the_sequence_and_a_slope_for_each_feature(self):
        slopes = {"trial": 0.5, "disagreement": -0.1, "coarseness": -0.02, "relation": 0.5}
        line = LinearEstimate(dict(zip(MODALITIES, (0.1, 0.2, 0.3, 0.4), strict=True)), slopes, 0.04, 0.02)
        model = quality_model(
            centres={"trial": 0.5, "disagreement": -0.6931, "coarseness": 0.0, "relation": 0.1},
            deviations={"trial": 0.1, "disagreement": 1.0, "coarseness": 0.6931, "relation": 0.5},
            ssim=line,
        )
        # 0.4 + 0.5 * 0.2 - 0 - 0.02 * 2 + 0.5 * 0.4, for the last sequence of the challenge's order.
        expected = model.expect(STATISTICS, MODALITIES[3], 0.52, 0.5).ssim
        assert (expected.value, expected.low, expected.high) == pytest.approx((0.66, 0.62, 0.68), abs=1e-3)

    def test_they_stay_within_what_a_score_can_be(self):
        assert quality_model(1.3).expect(STATISTICS, "t1c", 0.5, 0.1).ssim == Estimate(1.0, 1.0, 1.0)

    @pytest.mark.parametrize(("trial", "disagreement"), [(None, 0.1), (0.5, None)])
    def test_nothing_is_told_of_what_was_not_fitted(self, trial, disagreement):
        found = quality_model().expect(STATISTICS, "t1c", trial, disagreement)
        assert (found.ssim, found.psnr) == (None, None)

    @pytest.mark.parametrize("trial", [float("nan"), float("inf")])
    def test_what_is_no_number_tells_nothing(self, trial):
        assert quality_model().expect(STATISTICS, "t1c", trial, 0.1).ssim is None

    def test_inputs_that_never_vary(self):
        flat = dict.fromkeys(STATISTICS, 0.0)
        assert quality_model().expect(flat, "t1c", 0.5, 0.0).ssim is not None

    def test_they_hold_with_the_weights_that_were_tried(self):
        assert quality_model().is_for("a")
        assert quality_model(network_sha256="a").is_for("a")
        assert not quality_model(network_sha256="a").is_for("b")


class TestStrange:
    def test_the_strangest_comes_first(self):
        found = quality_model(ranges=RANGES).unlike(STATISTICS)
        assert [text.split(",")[0] for text in found] == ["t1n", "t2w"]
        assert found[1].endswith("is 4 and was 1 to 3 in 32 exams")

    @pytest.mark.parametrize(("value", "strange"), [(1650.0, False), (1701.0, True), (1149.0, False), (1099.0, True)])
    def test_a_quarter_of_the_range_is_left(self, value, strange):
        found = quality_model(ranges=RANGES).unlike({"brain ml": value})
        assert bool(found) == strange

    def test_a_large_brain_is_said_in_millilitres(self):
        (text,) = quality_model(ranges=RANGES).unlike({"brain ml": 1954.0})
        assert text == "the volume of the brain in ml is 1954 and was 1200 to 1600 in 32 exams"

    def test_the_sentence_names_three(self):
        found = Expectation(None, None, ("a", "b", "c", "d", "e"))
        sentence = found.warning("sub01", "unet")
        assert sentence == (
            "sub01 is unlike the exams that unet learnt from, look at the result with care: a; b; c; and 2 more."
        )
        assert Expectation(None, None).warning("sub01", "unet") is None


@pytest.mark.parametrize(
    ("expected", "least", "suffices"),
    [(None, None, True), (0.6, None, True), (0.6, 0.6, True), (0.6, 0.61, False), (None, 0.0, False),
     (float("nan"), 0.1, False)],
)  # fmt: skip
def test_what_suffices(expected, least, suffices):
    assert reaches(expected, least) == suffices


def test_the_record():
    found = Expectation(Estimate(0.61234, 0.5, 0.7), Estimate(19.26, 17.0, 21.0), ("a",))
    assert found.to_json() == {
        "ssim_brain": {"expected": 0.612, "low": 0.5, "high": 0.7},
        "psnr_brain": {"expected": 19.3, "low": 17.0, "high": 21.0},
        "unlike": ["a"],
    }
    assert in_brief(found.to_json()) == "expected SSIM in the brain 0.61 (0.50 to 0.70)"
    assert Expectation(None, None).to_json() == {}
    assert in_brief({}) == ""


class TestFile:
    def test_written_and_read(self):
        model = quality_model(0.63, ranges=RANGES)
        assert QualityModel.from_json(json.loads(quality_file(0.63, ranges=RANGES))) == model

    @pytest.mark.parametrize("part", ["exams", "ranges", "centres", "deviations", "ssim", "psnr"])
    def test_each_part_is_needed(self, part):
        form = quality_model().to_json()
        del form[part]
        with pytest.raises(LookupError):
            QualityModel.from_json(form)

    def test_what_is_no_number_is_refused(self):
        form = quality_model().to_json()
        form["ssim"]["below"] = float("nan")
        with pytest.raises(ValueError, match="finite"):
            QualityModel.from_json(form)
        with pytest.raises(TypeError, match="checksum"):
            QualityModel.from_json({**quality_model().to_json(), "network_sha256": 3})
        with pytest.raises(ValueError, match="vary"):
            model = quality_model()
            QualityModel.from_json(replace(model, deviations=dict.fromkeys(FEATURES, 0.0)).to_json())
