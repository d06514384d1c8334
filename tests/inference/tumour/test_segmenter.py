from __future__ import annotations

import numpy as np
import pytest
import torch

from app import Segmenter, __version__
from app.core.errors import CaseError, WeightsError
from app.inference.device import Runtime
from app.inference.tumour.segmenter import brighten
from app.registry.manifest import read_manifest
from tests.conftest import load
from tests.networks.small_models import SEGMENTING_WINDOW, save_tissnet


@pytest.fixture(scope="module", params=["one", None])
def segmenter(request, segmenting_weights):
    return Segmenter(request.param, weights=segmenting_weights, device="cpu", precision="fp32")


class TestBothKinds:
    def test_an_exam_that_lacks_a_sequence(self, segmenter, subject):
        labels, synthesis = segmenter(subject["t1n"].parent)
        reference = load(subject["t2w"])
        for image in (labels, synthesis):
            assert image.shape == reference.shape
            np.testing.assert_array_equal(image.affine, reference.affine)
        assert labels.get_data_dtype() == np.uint8
        assert set(np.unique(labels.dataobj)) <= {0, 1, 2, 3}
        brain = np.asarray(reference.dataobj) > 0
        assert not np.asarray(labels.dataobj)[~brain].any()
        assert np.asarray(synthesis.dataobj)[brain].any()

    def test_a_complete_exam(self, segmenter, write_subject, tmp_path):
        files = write_subject(tmp_path / "whole", lacks=())
        labels, synthesis = segmenter(files)
        assert synthesis is None
        assert labels.shape == load(files["t1c"]).shape

    def test_the_header_says_who_made_it(self, segmenter, subject):
        labels, _ = segmenter(subject["t1n"].parent)
        text = labels.header["descrip"].item().decode()
        assert text.startswith(f"synthetic seg from 3, tetrad {__version__}, {segmenter.model.identity.name} ")
        assert text.endswith(segmenter.model.identity.fingerprint[:8])

    def test_it_is_deterministic(self, segmenter, subject):
        first, second = (segmenter(subject["t1n"].parent)[0].to_bytes() for _ in range(2))
        assert first == second

    @pytest.mark.parametrize("lacks", [("t1c", "t2f"), ("t1c", "t1n", "t2w")])
    def test_fewer_than_three_sequences(self, segmenter, write_subject, tmp_path, lacks):
        write_subject(tmp_path / "few", lacks=lacks)
        with pytest.raises(CaseError, match=r"lacks t1c, .*three or four sequences"):
            segmenter(tmp_path / "few")


def test_a_model_that_segments_nothing(segmenting_weights):
    with pytest.raises(WeightsError, match="segments no exams"):
        Segmenter("tiny", weights=segmenting_weights)


def test_any_other_change_changes_the_completed_models_fingerprint(segmenting_weights, tmp_path):
    first = Segmenter(weights=segmenting_weights, device="cpu").model.identity
    second = Segmenter("other", weights=segmenting_weights, device="cpu").model.identity
    assert first.name == second.name == "completed"
    assert first.fingerprint != second.fingerprint


def test_a_network_that_breaks_is_no_empty_segmentation(segmenting_weights, subject, monkeypatch):
    segmenter = Segmenter("one", weights=segmenting_weights, device="cpu")
    network = segmenter.model.segmenter.network
    monkeypatch.setattr(network.segmentor, "forward", lambda x, case: (x[:, :3] * torch.nan,) * 2)
    with pytest.raises(CaseError, match="not finite"):
        segmenter(subject["t1n"].parent)


def test_what_it_makes_is_as_bright_as_predicted(segmenting_weights, write_subject, tmp_path):
    files = write_subject(tmp_path / "a")
    made = Segmenter("one", weights=segmenting_weights, device="cpu")(files)[1]
    twice = {m: load(f) for m, f in files.items()}
    for modality, image in twice.items():
        (tmp_path / "b").mkdir(exist_ok=True)
        doubled = type(image)(np.asarray(image.dataobj) * 2, image.affine)
        doubled.to_filename(tmp_path / "b" / f"b-{modality}.nii.gz")
    brighter = Segmenter("one", weights=segmenting_weights, device="cpu")(tmp_path / "b")[1]
    # The predictor is linear in logarithms: twice the light in, more light out.
    assert np.asarray(brighter.dataobj).mean() > 1.5 * np.asarray(made.dataobj).mean()


def test_a_tissnet_of_one_target_refuses_others(segmenting_weights, write_subject, tmp_path):
    save_tissnet(segmenting_weights, "flair", targets=("t2f",), complete=False)
    segmenter = Segmenter("flair", weights=segmenting_weights, device="cpu")
    assert read_manifest(segmenting_weights).entry("flair").spec.window == SEGMENTING_WINDOW
    write_subject(tmp_path / "a", lacks=("t1c",))
    with pytest.raises(CaseError, match="does not make t1c"):
        segmenter(tmp_path / "a")
    write_subject(tmp_path / "b", lacks=())
    with pytest.raises(CaseError, match="needs an exam that lacks a sequence"):
        segmenter(tmp_path / "b")


def test_brightness_is_set_over_the_brain_alone():
    made = brighten(np.array([-1, -1, 0, 1], np.float32), 300)
    assert made.tolist() == [0, 0, 200, 400]
    assert brighten(np.full(3, -1, np.float32), 300).tolist() == [0, 0, 0]


@pytest.mark.parametrize("model", ["one", None])
def test_where_others_run_in_float16_it_runs_and_is_recorded_in_float32(segmenting_weights, monkeypatch, model):
    half = Runtime("torch", "cpu", "fp16", 8, "an older GPU")
    monkeypatch.setattr("app.inference.tumour.segmenter.choose_runtime", lambda *_: half)
    opened = Segmenter(model, weights=segmenting_weights, device="cpu").model
    assert opened.runtime.precision == "fp32"
    assert opened.segmenter.precision == torch.float32


def test_networks_of_volumes_run_in_another_precision_than_eight_bits(segmenting_weights):
    opened = Segmenter("one", weights=segmenting_weights, device="cpu", precision="int8").model
    assert opened.runtime.precision in {"bf16", "fp32"}
