"""The whole way of a case: valid outputs, whatever the orientation, the brightness or the number of inputs."""

from __future__ import annotations

import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from app import Synthesizer
from app.core.constants import MODALITIES, REFERENCE_OF
from app.core.errors import CaseError, DoubtfulError, UsageError
from app.data.nifti_reader import load_volume
from app.data.nifti_writer import DESCRIPTION
from app.inference import models
from app.inference.pipeline import describe, predict, prepare, refine, synthesize_case
from app.inference.slicewise.slice_predictor import SlicePredictor
from app.registry.manifest import add_file, read_manifest
from tests.preprocessing.quality import STRANGE, quality_file

MODELS = ["regression", "tiny"]


def _synthesizer(weights_dir, model="regression", **options):
    return Synthesizer(model, weights=weights_dir, device="cpu", **{"precision": "fp32", **options})


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("target", MODALITIES)
def test_output_is_a_valid_sequence_on_its_references_grid(tmp_path, write_subject, weights_dir, model, target):
    files = write_subject(tmp_path / "s", lacks=(target,))
    image = _synthesizer(weights_dir, model)(tmp_path / "s")
    reference = nib.load(files[REFERENCE_OF[target]])
    values = np.asarray(image.dataobj)
    assert image.shape == reference.shape
    assert image.get_data_dtype() == np.int16
    np.testing.assert_array_equal(image.affine, reference.affine)
    stack = np.stack([np.asarray(nib.load(f).dataobj) for f in files.values()])
    background = (stack <= 0).sum(axis=0) >= 2
    assert (values[background] == 0).all()
    assert values.min() >= 0
    assert values[~background].std() > 0


@pytest.mark.parametrize("model", MODELS)
def test_orientation_does_not_matter(tmp_path, write_subject, weights_dir, model):
    """The same anatomy, stored right-anterior-superior and with its axes exchanged, gives the same voxels."""
    files = write_subject(tmp_path / "lps" / "s")
    synthesizer = _synthesizer(weights_dir, model)
    original = synthesizer(tmp_path / "lps" / "s")
    for code in ("RAS", "LAS", "PSL", "SRP"):
        place = tmp_path / code / "s"
        place.mkdir(parents=True)
        ornt = nib.orientations.axcodes2ornt(tuple(code))
        for file in files.values():
            image = nib.load(file)
            moved = image.as_reoriented(
                nib.orientations.ornt_transform(nib.orientations.io_orientation(image.affine), ornt)
            )
            nib.save(moved, place / file.name)
        made = synthesizer(place)
        assert nib.aff2axcodes(made.affine) == tuple(code)
        back = made.as_reoriented(
            nib.orientations.ornt_transform(
                nib.orientations.io_orientation(made.affine), nib.orientations.io_orientation(original.affine)
            )
        )
        np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(original.dataobj))
        np.testing.assert_allclose(back.affine, original.affine)


@pytest.mark.parametrize("model", MODELS)
def test_the_same_input_gives_the_same_voxels(subject, weights_dir, model):
    synthesizer = _synthesizer(weights_dir, model)
    one, two = (synthesizer(subject["t1n"].parent) for _ in range(2))
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(two.dataobj))


@pytest.fixture
def telling(tmp_path, weights_dir):
    """Weights whose `tiny` expects 0.7 of each exam."""
    folder = tmp_path / "telling"
    shutil.copytree(weights_dir, folder)
    add_file(read_manifest(folder).entry("tiny"), "quality", quality_file(ranges=STRANGE))
    return folder


class TestExpectation:
    def test_what_is_expected_of_a_sequence(self, subject, telling):
        model = _synthesizer(telling, "tiny").model
        volumes = {m: load_volume(subject[m]) for m in ("t1c", "t1n", "t2w")}
        made = synthesize_case(volumes, "t2f", "t2w", model)
        assert made.expectation.ssim.value == 0.7
        assert made.expectation.unlike[0].startswith("t1n, the step")
        # Of two inputs nothing is known but what is strange.
        assert synthesize_case({m: volumes[m] for m in ("t1c", "t2w")}, "t2f", "t2w", model).expectation.ssim is None

    def test_the_class_warns_of_what_is_strange(self, subject, telling, caplog):
        _synthesizer(telling, "tiny")(subject)
        assert "is unlike the exams that tiny learnt from" in caplog.text

    def test_it_changes_no_voxel_and_stands_in_the_header(self, subject, telling, weights_dir):
        one, two = (_synthesizer(folder, "tiny")(subject) for folder in (telling, weights_dir))
        assert one.header["intent_name"].item() == b"expected 0.700"
        one.header["intent_name"] = b""
        assert one.to_bytes() == two.to_bytes()

    def test_less_than_was_asked_for_is_refused(self, subject, telling):
        with pytest.raises(DoubtfulError, match=r"SSIM of 0.700 in the brain, 0.75 is asked for .*; t1n, the step"):
            _synthesizer(telling, "tiny", min_expected_ssim=0.75)(subject)
        _synthesizer(telling, "tiny", min_expected_ssim=0.7)(subject)

    def test_what_nobody_knows_is_refused(self, subject, telling):
        two = {m: subject[m] for m in ("t1c", "t2w")}
        with pytest.raises(DoubtfulError, match="of its t2f, since it was made from 2 of three"):
            _synthesizer(telling, "tiny", min_expected_ssim=0.1)(two, target="t2f")

    def test_a_specialist_has_the_network_tried_that_makes_all(self, subject, specialist_weights):
        model = _synthesizer(specialist_weights, "tiny").model
        assert model.model_for("t2f").trial_model.identity == model.identity
        assert model.trial_model is None

    def test_other_weights_than_were_tried_tell_nothing(self, subject, telling):
        add_file(read_manifest(telling).entry("tiny"), "quality", quality_file(network_sha256="0" * 64))
        with pytest.raises(DoubtfulError, match="since this model does not tell"):
            _synthesizer(telling, "tiny", min_expected_ssim=0.1)(subject)
        _synthesizer(telling, "tiny")(subject)

    def test_what_only_describes_an_image_does_not_cost_it(self, subject, telling, monkeypatch, caplog):
        def broken(*_):
            raise CaseError("too large")

        monkeypatch.setattr(models, "trial_ssim", broken)
        _synthesizer(telling, "tiny")(subject)
        assert "What to expect of t2f could not be told: too large" in caplog.text
        with pytest.raises(DoubtfulError, match="nobody knows what to expect of its t2f: too large"):
            _synthesizer(telling, "tiny", min_expected_ssim=0.1)(subject)

    @pytest.mark.parametrize("value", [float("nan"), -0.1, 60])
    def test_what_is_no_ssim_is_refused(self, telling, value):
        with pytest.raises(UsageError, match="is no SSIM; use a number from 0 to 1"):
            _synthesizer(telling, "tiny", min_expected_ssim=value)

    def test_one_voxel_that_is_no_number_decides_nothing(self, subject, telling, monkeypatch):
        real = SlicePredictor._slices

        def spoilt(self, *arguments):
            images, errors = real(self, *arguments)
            images[len(images) // 2, 0, images.shape[2] // 2, images.shape[3] // 2] = float("nan")
            return images, errors

        monkeypatch.setattr(SlicePredictor, "_slices", spoilt)
        model = _synthesizer(telling, "tiny").model
        volumes = {m: load_volume(subject[m]) for m in ("t1c", "t1n", "t2w")}
        assert synthesize_case(volumes, "t2f", "t2w", model).expectation.ssim.value == 0.7

    @pytest.mark.parametrize("model", MODELS)
    def test_a_model_that_does_not_tell_cannot_be_asked(self, weights_dir, model):
        with pytest.raises(UsageError, match="does not tell what to expect"):
            _synthesizer(weights_dir, model, min_expected_ssim=0.5)


def test_brightness_follows_the_inputs(subject, weights_dir, tmp_path):
    """Doubling every input doubles the output: no absolute scale is built in."""
    synthesizer = _synthesizer(weights_dir)
    one = np.asarray(synthesizer(subject).dataobj).astype(float)
    doubled = {}
    for modality, file in subject.items():
        image = nib.load(file)
        doubled[modality] = tmp_path / file.name
        nib.save(nib.Nifti1Image((np.asarray(image.dataobj) * 2).astype(np.int16), image.affine), doubled[modality])
    two = np.asarray(synthesizer(doubled).dataobj).astype(float)
    assert np.abs(two - 2 * one).max() <= 2


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_inputs_are_enough(tmp_path, write_subject, weights_dir, count):
    for model in MODELS:
        lacks = tuple(m for m in MODALITIES[: 4 - count])
        write_subject(tmp_path / model / "s", lacks=lacks)
        image = _synthesizer(weights_dir, model)(tmp_path / model / "s", target=lacks[0])
        assert np.asarray(image.dataobj).max() > 0


def test_the_manifests_contrast_spreads_what_the_network_makes(subject, weights_dir):
    synthesizer = _synthesizer(weights_dir, "tiny")
    spreads = {}
    for contrast in (0.0, 1.0):
        spec = synthesizer.model.spec.model_copy(update={"contrast": contrast})
        synthesizer.model = replace(synthesizer.model, spec=spec)
        image = synthesizer(subject)
        values = np.asarray(image.dataobj)
        spreads[contrast] = values[values > 0].std() / values[values > 0].mean()
    # An untrained network makes next to a constant; stretched, the image varies as a scan does.
    assert spreads[1.0] > 2 * spreads[0.0]


def test_the_manifests_detail_sharpens_what_the_network_makes(subject, weights_dir):
    synthesizer = _synthesizer(weights_dir, "tiny")
    made = {}
    for detail in (0.0, 1.0, 3.0):
        spec = synthesizer.model.spec.model_copy(update={"contrast": 1.0, "detail": detail})
        synthesizer.model = replace(synthesizer.model, spec=spec)
        values = np.asarray(synthesizer(subject).dataobj).astype(float)
        made[detail] = np.abs(np.diff(values[values.any(axis=(1, 2))], axis=1)).mean() / values[values > 0].std()
    assert made[0.0] < made[1.0] < made[3.0]


def test_the_manifests_highlights_lift_what_is_bright(subject, weights_dir):
    synthesizer = _synthesizer(weights_dir, "tiny")
    peaks = {}
    for highlights in (1.0, 2.0):
        spec = synthesizer.model.spec.model_copy(update={"contrast": 1.0, "highlights": highlights})
        synthesizer.model = replace(synthesizer.model, spec=spec)
        values = np.asarray(synthesizer(subject).dataobj).astype(float)
        brain = values[values > 0]
        peaks[highlights] = (np.percentile(brain, 97) - np.median(brain), np.percentile(brain, 20))
    assert peaks[2.0][0] == pytest.approx(2 * peaks[1.0][0], rel=0.05)
    assert peaks[2.0][1] == pytest.approx(peaks[1.0][1], rel=0.02)


class TestRefine:
    @pytest.mark.parametrize("backend", ["torch", "onnx"])
    def test_it_stands_between_the_network_and_the_end(self, refined_weights, subject, backend):
        plain, both = (
            Synthesizer("tiny", weights=refined_weights, device="cpu", backend=backend, precision="fp32", refine=r)
            for r in (False, True)
        )
        assert plain.model.refiner is None
        assert plain.model.contrast == 0
        assert both.model.contrast == 0.3
        # What blurs less is neither sharpened nor lifted.
        sharp = replace(both.model, spec=both.model.spec.model_copy(update={"detail": 1.5, "highlights": 1.3}))
        assert (sharp.detail, replace(sharp, refiner=None).detail) == (1.0, 1.5)
        assert (sharp.highlights, replace(sharp, refiner=None).highlights) == (1.0, 1.3)
        case = {m: str(f) for m, f in subject.items()}
        first, second = (np.asarray(s(case).dataobj) for s in (plain, both))
        assert first.shape == second.shape
        outside = np.all([load_volume(f).data == 0 for f in subject.values()], axis=0)
        assert outside.any()
        assert not first[outside].any()
        assert not second[outside].any()
        assert not np.array_equal(first, second)
        header = both(case).header["descrip"].item().decode()
        assert "tiny+sharp" in header

    def test_who_needs_no_z_scores_has_them_for_the_refiner(self, refined_weights, subject, monkeypatch):
        model = Synthesizer("tiny", weights=refined_weights, device="cpu", precision="fp32", refine=True).model
        volumes = {m: load_volume(f) for m, f in subject.items()}
        results = []
        for on_gpu in (False, True):
            monkeypatch.setattr(SlicePredictor, "normalizes", on_gpu)
            prepared = prepare(volumes, model)
            assert "normalized" in vars(prepared)
            results.append(refine(predict(prepared, "t2f", model), prepared, "t2f", model).volume)
        np.testing.assert_allclose(results[0], results[1], atol=2e-3)


def test_a_long_name_leaves_room_for_what_tells_the_model(weights_dir):
    model = _synthesizer(weights_dir, "tiny").model
    named = replace(model, identity=replace(model.identity, name="x" * 200))
    text = describe(named, "t2f", 3)
    assert len(text) == DESCRIPTION
    assert text.startswith("synthetic t2f from 3, tetrad ")
    assert text.endswith(f"xx {model.identity.fingerprint[:8]} mean")
    assert describe(model, "t2f", 3).endswith(f", tiny {model.identity.fingerprint[:8]} mean")
