"""The class for Python: what it takes, what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from app import Synthesizer
from app.core.config import ModelOptions, RuntimeOptions
from app.core.errors import CaseError, DeviceError, UsageError, WeightsError
from app.data.discovery import scan
from app.data.nifti_reader import file_sha256
from app.inference.provenance import inputs_digest

MODELS = ["regression", "tiny"]


def _synthesizer(weights_dir, model="regression", **options):
    return Synthesizer(model, weights=weights_dir, device="cpu", **{"precision": "fp32", **options})


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


def test_from_the_options_of_a_command_line(subject, weights_dir):
    by_words = Synthesizer("tiny", weights=weights_dir, device="cpu", precision="fp32", fusion="median")
    by_options = Synthesizer.from_options(
        ModelOptions(weights_dir, "tiny", fusion="median"), RuntimeOptions("cpu", precision="fp32")
    )
    assert by_options.model.fusion == by_words.model.fusion
    assert by_options.model.runtime == by_words.model.runtime
    assert by_options.fallback_name == "regression"
    np.testing.assert_array_equal(np.asarray(by_options(subject).dataobj), np.asarray(by_words(subject).dataobj))


def test_an_image_says_what_it_was_made_from(weights_dir, subject):
    text = _synthesizer(weights_dir)(subject).header["aux_file"].item().decode()
    assert text == f"inputs {inputs_digest({m: file_sha256(f) for m, f in subject.items()})}"


def test_the_regression_is_its_own_fallback(weights_dir):
    synthesizer = _synthesizer(weights_dir)
    assert synthesizer.fallback_name is None
    assert synthesizer.fallback is synthesizer.model
