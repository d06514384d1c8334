"""Ranges for eight bits: measured, written beside the weights, and used."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from app import Synthesizer
from app.core.errors import UsageError, WeightsError
from app.networks.int8 import has_int8
from app.registry.checkpoints import load_ranges
from app.registry.manifest import read_manifest
from app.training.fits.int8_ranges import calibrate, can_be_measured


@pytest.fixture
def weights(confident_weights, tmp_path):
    return shutil.copytree(confident_weights, tmp_path / "w")


def test_only_plain_u_nets_can(weights, training_data):
    entries = read_manifest(weights).entries
    assert can_be_measured(entries["unet"]) and not can_be_measured(entries["regression"])
    with pytest.raises(UsageError, match="'hybrid' is no plain U-Net"):
        calibrate(weights, "hybrid", training_data)


def test_no_subject_to_measure_on(weights, training_data):
    with pytest.raises(UsageError, match="holds no complete subject"):
        calibrate(weights, "unet", training_data, subjects=["nobody"])


def test_subjects_that_cannot_be_read(weights, training_data, tmp_path):
    folder = shutil.copytree(training_data, tmp_path / "data")
    for file in folder.rglob("*-t1n.nii.gz"):
        file.write_bytes(b"no image")
    before = (weights / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match=r"nothing was measured|holds no complete subject"):
        calibrate(weights, "unet", folder)
    assert (weights / "manifest.json").read_bytes() == before


def test_the_model_stays_the_same_one(weights, training_data):
    before = read_manifest(weights).entry("unet")
    after = calibrate(weights, "unet", training_data)
    assert after.identity == before.identity
    assert "int8" in after.files and after.files["torch"] == before.files["torch"]


@pytest.mark.parametrize(
    "change,reason",
    [
        (lambda form: form | {"weights": "0" * 64}, "measured with other weights"),
        (lambda form: form | {"ranges": {"down.0": [[1.0], [1.0, 2.0]]}}, "values where"),
        (lambda form: {"weights": form["weights"]}, "ranges"),
    ],
)
def test_a_file_of_other_weights_or_without_ranges(weights, training_data, change, reason):
    from app.registry.manifest import add_file

    entry = calibrate(weights, "unet", training_data)
    form = change(json.loads(entry.path_of("int8").read_text()))
    entry = add_file(entry, "int8", json.dumps(form).encode())
    with pytest.raises(WeightsError, match=reason):
        load_ranges(entry)


@pytest.mark.skipif(not has_int8(), reason="this processor, or this torch, does not multiply in eight bits")
class TestUse:
    def test_an_exam_in_eight_bits(self, weights, training_data, subject):
        calibrate(weights, "unet", training_data)
        files = {m: subject[m] for m in ("t1c", "t1n", "t2w")}
        made = {
            precision: np.asarray(
                Synthesizer("unet", weights=weights, device="cpu", precision=precision)(files, "t2f").dataobj
            ).astype(np.float32)
            for precision in ("fp32", "int8")
        }
        brain = made["fp32"] > 0
        difference = np.abs(made["int8"] - made["fp32"])[brain].mean()
        # Untrained weights make noise of it; trained ones lose less.
        assert 0 < difference < 0.2 * made["fp32"][brain].std()

    def test_a_model_that_was_not_measured(self, weights):
        with pytest.raises(UsageError, match="not measured for int8"):
            Synthesizer("unet", weights=weights, device="cpu", precision="int8")

    def test_a_range_that_lacks(self, weights, training_data):
        from app.registry.manifest import add_file

        entry = calibrate(weights, "unet", training_data)
        form = json.loads(entry.path_of("int8").read_text())
        del form["ranges"]["joined.0"]
        add_file(entry, "int8", json.dumps(form).encode())
        with pytest.raises(WeightsError, match=r"does not fit the network \(KeyError: 'joined"):
            Synthesizer("unet", weights=weights, device="cpu", precision="int8")

    def test_ranges_of_other_widths(self, weights, training_data):
        from app.registry.manifest import add_file

        entry = calibrate(weights, "unet", training_data)
        form = json.loads(entry.path_of("int8").read_text())
        form["ranges"]["down.0"] = [[0.0], [1.0]]
        add_file(entry, "int8", json.dumps(form).encode())
        with pytest.raises(WeightsError, match="does not fit the network"):
            Synthesizer("unet", weights=weights, device="cpu", precision="int8")

    def test_ranges_of_another_kind_of_network(self, weights, training_data):
        from app.registry.manifest import add_file

        measured = calibrate(weights, "unet", training_data).path_of("int8").read_bytes()
        hybrid = read_manifest(weights).entry("hybrid")
        form = json.loads(measured) | {"weights": hybrid.sha256}
        add_file(hybrid, "int8", json.dumps(form).encode())
        with pytest.raises(WeightsError, match="plain U-Nets alone"):
            Synthesizer("hybrid", weights=weights, device="cpu", precision="int8")

    def test_errors_are_expected_too(self, weights, training_data, subject):
        from app.data.nifti_reader import load_volume
        from app.inference.pipeline import predict, prepare

        calibrate(weights, "unet", training_data)
        model = Synthesizer("unet", weights=weights, device="cpu", precision="int8", with_error=True).model
        assert model.runtime is not None and model.runtime.precision == "int8"
        made = predict(prepare({m: load_volume(subject[m]) for m in ("t1c", "t1n", "t2w")}, model), "t2f", model)
        assert made.error is not None and (made.error > 0).all()
