from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from app import Synthesizer
from app.core.constants import MODALITIES, REFERENCE_OF
from app.core.errors import CaseError, DeviceError, UsageError, WeightsError
from app.data.discovery import scan

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


class TestSynthesizer:
    def test_it_takes_a_folder_a_mapping_or_a_case(self, subject, weights_dir, tmp_path):
        synthesizer = _synthesizer(weights_dir)
        results = [synthesizer(c) for c in (subject["t1n"].parent, subject, scan(tmp_path / "in").cases[0])]
        for result in results[1:]:
            np.testing.assert_array_equal(np.asarray(result.dataobj), np.asarray(results[0].dataobj))

    def test_a_present_sequence_can_be_made_again(self, tmp_path, write_subject, weights_dir):
        complete = write_subject(tmp_path / "a" / "s", lacks=())
        without = write_subject(tmp_path / "b" / "s", lacks=("t2w",))
        synthesizer = _synthesizer(weights_dir)
        np.testing.assert_array_equal(
            np.asarray(synthesizer(complete, target="t2w").dataobj), np.asarray(synthesizer(without).dataobj)
        )

    def test_a_complete_subject_asks_for_a_target(self, tmp_path, write_subject, weights_dir):
        with pytest.raises(CaseError, match="all four"):
            _synthesizer(weights_dir)(write_subject(tmp_path / "s", lacks=()))

    @pytest.mark.parametrize("case", [{"t3": "x.nii.gz"}, {}])
    def test_no_such_sequence_or_none(self, weights_dir, case):
        with pytest.raises((UsageError, CaseError)):
            _synthesizer(weights_dir)(case)

    def test_a_folder_of_many_is_refused(self, tmp_path, write_subject, weights_dir):
        for name in ("a", "b"):
            write_subject(tmp_path / name)
        with pytest.raises(UsageError, match="2 subjects"):
            _synthesizer(weights_dir)(tmp_path)

    @pytest.mark.parametrize("model", MODELS)
    def test_a_gpu_that_is_not_there_is_never_passed_over(self, weights_dir, model, monkeypatch):
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        with pytest.raises(DeviceError):
            Synthesizer(model, weights=weights_dir, device="cuda")

    @pytest.mark.parametrize("options", [{"precision": "q"}, {"backend": "zz"}, {"batch_size": -1}])
    def test_arguments_that_do_not_exist(self, weights_dir, options):
        with pytest.raises(UsageError, match="do not exist"):
            Synthesizer("regression", weights=weights_dir, **options)

    @pytest.mark.parametrize("options", [{"precision": "bf16"}, {"backend": "onnx"}])
    def test_a_regression_takes_no_backend_and_no_precision(self, weights_dir, options):
        with pytest.raises(UsageError, match="is no network"):
            Synthesizer("regression", weights=weights_dir, **options)

    def test_several_lacking_ask_for_a_target(self, tmp_path, write_subject, weights_dir):
        with pytest.raises(CaseError, match="`target`"):
            _synthesizer(weights_dir)(write_subject(tmp_path / "s", lacks=("t1c", "t2f")))

    def test_unknown_model(self, weights_dir):
        with pytest.raises(WeightsError):
            Synthesizer("huge", weights=weights_dir)

    def test_remarks_on_what_models_were_not_made_for(self, tmp_path, write_subject, weights_dir, caplog):
        write_subject(tmp_path / "s", affine=np.diag([-0.5, -0.5, 3.0, 1.0]))
        _synthesizer(weights_dir)(tmp_path / "s")
        assert "0.5x0.5x3 mm" in caplog.text

    def test_onnx_gives_what_torch_gives(self, subject, onnx_weights_dir):
        one = np.asarray(_synthesizer(onnx_weights_dir, "tiny", backend="torch")(subject).dataobj).astype(int)
        two = np.asarray(_synthesizer(onnx_weights_dir, "tiny", backend="onnx")(subject).dataobj).astype(int)
        assert np.abs(one - two).max() <= max(1, 1e-3 * np.ptp(one))

    def test_batch_size_does_not_change_the_result(self, subject, weights_dir):
        one = np.asarray(_synthesizer(weights_dir, "tiny", batch_size=1)(subject).dataobj).astype(int)
        two = np.asarray(_synthesizer(weights_dir, "tiny", batch_size=16)(subject).dataobj).astype(int)
        assert np.abs(one - two).max() <= 1


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
