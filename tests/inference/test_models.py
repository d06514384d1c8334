"""Models ready to run: what a network with its head, its refiner and its specialists predicts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from app.core.config import FUSIONS
from app.core.constants import MODALITIES, VIEWS
from app.core.errors import CaseError
from app.data.nifti_reader import load_volume
from app.inference.models import RegressionModel
from app.inference.pipeline import predict, prepare
from app.inference.slicewise.slice_predictor import SlicePredictor
from app.inference.slicewise.view_fusion import FusionOptions
from app.inference.synthesizer import Synthesizer
from app.networks.architectures import RefinerConfig
from app.networks.confidence import ConfidenceHead
from app.networks.refiner import Refiner
from app.registry.manifest import change_spec, read_manifest
from tests.networks.small_models import CONFIDENT, VOLUME, save_refiner


def _open(weights, name="unet", **options):
    return Synthesizer(name, weights=weights, device="cpu", **{"precision": "fp32", **options}).model


def _volumes(subject):
    return {m: load_volume(f) for m, f in subject.items()}


def _mirrored(volumes):
    return {m: replace(v, data=np.ascontiguousarray(v.data[::-1])) for m, v in volumes.items()}


class TestNetwork:
    @pytest.fixture
    def weights(self, confident_weights):
        return confident_weights

    @pytest.mark.parametrize("flip", [False, True])
    @pytest.mark.parametrize("fusion", FUSIONS)
    @pytest.mark.parametrize("name", CONFIDENT)
    def test_z_scores_of_the_device_give_the_same_bits(self, weights, subject, name, fusion, flip, monkeypatch):
        model = _open(weights, name, fusion=fusion, flip_average=flip, with_error=True)
        prepared = prepare(_volumes(subject), model)
        plain = predict(prepared, "t2f", model)
        monkeypatch.setattr(SlicePredictor, "normalizes", True)
        on_device = predict(prepared, "t2f", model)
        np.testing.assert_array_equal(on_device.volume, plain.volume)
        np.testing.assert_array_equal(on_device.error, plain.error)
        assert plain.error[prepared.foreground].std() > 0

    def test_asking_for_the_error_leaves_the_image(self, weights, subject):
        prepared = prepare(_volumes(subject), _open(weights))
        alone, both = (predict(prepared, "t2f", _open(weights, with_error=e)) for e in (False, True))
        assert alone.error is None
        np.testing.assert_array_equal(alone.volume, both.volume)

    def test_without_the_wish_the_head_does_not_run(self, weights, subject, monkeypatch):
        model = _open(weights, "tiny", fusion="median", flip_average=True)
        monkeypatch.setattr(ConfidenceHead, "forward", lambda *_: pytest.fail("the head was run"))
        predict(prepare(_volumes(subject), model), "t2f", model)

    @pytest.mark.parametrize("fusion", FUSIONS)
    def test_a_mirrored_exam_gives_a_mirrored_result(self, weights, subject, fusion):
        model = _open(weights, fusion=fusion, quality="best", with_error=True)
        volumes = _volumes(subject)
        # One voxel less, so that the brain's middle moves by half a voxel against the grid's.
        volumes = {m: replace(v, data=v.data[1:]) for m, v in volumes.items()}
        one, other = (predict(prepare(v, model), "t2f", model) for v in (volumes, _mirrored(volumes)))
        np.testing.assert_allclose(one.volume, other.volume[::-1], atol=1e-4)
        np.testing.assert_allclose(one.error, other.error[::-1], rtol=1e-3)
        plain = replace(model, fusion=FusionOptions(fusion))
        one, other = (predict(prepare(v, plain), "t2f", plain) for v in (volumes, _mirrored(volumes)))
        assert np.abs(one.volume - other.volume[::-1]).max() > 1e-2

    def test_the_surer_view_weighs_more(self, weights, subject):
        """By hand from single views, each run alone."""
        model = _open(weights, with_error=True)
        prepared = prepare(_volumes(subject), model)
        singles = [
            predict(prepared, "t2f", replace(model, spec=model.spec.model_copy(update={"views": (v,)})))
            for v in VIEWS
        ]  # fmt: skip
        fused = predict(prepared, "t2f", replace(model, fusion=FusionOptions("confidence")))
        weights_ = [1 / (np.square(s.error.astype(np.float64)) + 1e-6) for s in singles]
        expected = sum(w * s.volume for w, s in zip(weights_, singles, strict=True)) / sum(weights_)
        np.testing.assert_allclose(fused.volume, expected, atol=1e-3)
        assert np.abs(fused.volume - np.mean([s.volume for s in singles], axis=0)).max() > 1e-2

    def test_the_whole_way_by_onnx(self, weights, subject):
        options = {"fusion": "confidence", "flip_average": True, "with_error": True}
        volumes = _volumes(subject)
        one, other = (
            predict(prepare(volumes, m), "t2f", m)
            for m in (_open(weights, backend=b, **options) for b in ("torch", "onnx"))
        )
        # An untrained network is harsh: what rounds otherwise is seen in single voxels.
        for made, again in ((one.volume, other.volume), (one.error, other.error)):
            assert np.abs(made - again).mean() < 1e-3 * made.std()
            assert np.abs(made - again).max() < 0.05 * made.std()


class TestSpecialists:
    @pytest.fixture
    def weights(self, specialist_weights):
        return specialist_weights

    @pytest.mark.parametrize("refine", [None, True])
    def test_what_a_specialist_makes_passes_through_no_refiner_of_another(self, weights, subject, refine):
        made = Refiner(RefinerConfig((8, 8, 8)))
        save_refiner(weights, "sharp", made.config, made.state_dict(), VOLUME, (32, 32, 32), 0.25)
        change_spec(read_manifest(weights).entry("tiny"), refiner="sharp", refine=True)
        model = _open(weights, "tiny", refine=refine)
        assert model.model_for("t1c").refiner is not None
        assert model.model_for("t2f").refiner is None

    @pytest.mark.parametrize(("slices", "name"), [(1.0, "expert"), (3.0, "expert"), (3.1, "tiny"), (6.5, "tiny")])
    def test_a_specialist_may_be_for_thin_slices(self, weights, slices, name):
        change_spec(read_manifest(weights).entry("expert"), max_slice_mm=3.0)
        model = _open(weights, "tiny")
        maker = model.model_for("t2f", slices)
        assert maker.identity.name == name
        # Whoever asks the maker again gets the same one.
        assert maker.model_for("t2f").identity.name == name
        assert model.model_for("t1c", slices) is model

    def test_that_is_no_part_of_what_it_is(self, weights):
        before = read_manifest(weights).entry("expert")
        assert change_spec(before, max_slice_mm=3.0).identity == before.identity

    def test_scores_for_both_are_the_same(self, weights, subject):
        model = _open(weights, "tiny")
        volumes = _volumes(subject)
        one, other = prepare(volumes, model), prepare(volumes, model.model_for("t2f"))
        maker = model.model_for("t2f")
        assert np.array_equal(predict(one, "t2f", maker).volume, predict(other, "t2f", maker).volume)

    def test_views_are_joined_as_asked_by_both(self, weights):
        model = _open(weights, "tiny", fusion="median", flip_average=True)
        assert model.model_for("t2f").fusion == model.model_for("t1c").fusion

    def test_it_predicts_its_own_sequences_only(self, weights, subject):
        model = _open(weights, "expert")
        with pytest.raises(CaseError, match=r"'expert' makes t2f and not t1c"):
            model.predict(prepare(_volumes(subject), model), "t1c")

    def test_a_model_of_its_own_leaves_nothing_to_others(self, weights_dir):
        model = _open(weights_dir, "tiny")
        assert model.targets == MODALITIES
        assert all(model.model_for(m) is model for m in MODALITIES)


class TestRegression:
    @pytest.fixture
    def model(self, weights_dir):
        return Synthesizer("regression", weights=weights_dir, device="cpu").model

    def test_it_is_alone_and_makes_all(self, model):
        assert isinstance(model, RegressionModel)
        assert all(model.model_for(m) is model for m in MODALITIES)
        assert (model.targets, model.name, model.contrast, model.detail) == (MODALITIES, "regression", 0, 1)
        assert (model.runtime, model.fusion, model.refiner, model.specialists) == (None, None, None, {})

    def test_what_it_reads_is_computed_with_the_exam(self, model, subject):
        prepared = prepare(_volumes(subject), model)
        assert "normalized" in vars(prepared)
        predicted = model.predict(prepared, "t2f")
        assert predicted.error is None
        assert predicted.volume[prepared.foreground].std() > 0
