from __future__ import annotations

import json
import signal
from dataclasses import replace

import pytest

from app.batch.outcomes import Outcome, OutputRecord, Provenance, Summary, exit_code_of

NETWORK = Provenance("t2w", "unet", "ab" * 32, None, "mean+flip", "cuda:0")
MADE = OutputRecord("t2f", "out/s-t2f.nii.gz", "cd" * 32, NETWORK)
KEPT = OutputRecord("t2f", "out/s-t2f.nii.gz", "cd" * 32, origin="synthetic t2f from 3, tetrad 0.1.0")
OUTCOME = Outcome(
    "s",
    "made",
    inputs={"t2w": "in/s-t2w.nii.gz"},
    lacked=("t2f",),
    outputs=(MADE,),
    warnings=("careful",),
    seconds=1.5,
    stages={"read": 1.0, "network": 0.5},
    input_sha256={"t2w": "ef" * 32},
)


@pytest.mark.parametrize(
    "statuses,options,code",
    [
        (["made", "kept", "complete"], {}, 0),
        (["made", "failed"], {}, 1),
        (["made"], {"stopped": True}, 1),
        (["made"], {"report_failed": True}, 1),
        (["made"], {"signal_number": signal.SIGTERM}, 143),
        (["failed"], {"signal_number": signal.SIGTERM}, 143),
        ([], {}, 0),
    ],
)
def test_exit_code(statuses, options, code):
    assert exit_code_of(Summary([Outcome("s", s) for s in statuses], (), **options)) == code


@pytest.mark.parametrize(
    "outcome,sentence",
    [
        (OUTCOME, "s: t2f made from t2w in 1.5 s (unet)"),
        (Outcome("s", "kept", outputs=(KEPT,)), "s: t2f is there already, kept (--overwrite makes it again)"),
        (Outcome("s", "complete"), "s: has all four sequences, passed over"),
        (Outcome("s", "failed", error="no brain."), "s: FAILED: no brain."),
    ],
)
def test_a_sentence_for_a_person(outcome, sentence):
    assert outcome.sentence() == sentence


class TestJson:
    @pytest.mark.parametrize("output", [MADE, KEPT])
    def test_an_output_survives_the_disk(self, output):
        assert OutputRecord.from_json(json.loads(json.dumps(output.to_json()))) == output

    def test_an_outcome_survives_the_disk(self):
        assert Outcome.from_json(json.loads(json.dumps(OUTCOME.to_json()))) == OUTCOME

    def test_what_is_expected_survives_the_disk(self):
        provenance = Provenance("t2w", "unet", "0" * 64, None, "mean", "cpu", expected={"unlike": ["a"]})
        output = OutputRecord("t2f", "a.nii.gz", "1" * 64, provenance)
        assert OutputRecord.from_json(output.to_json()) == output

    def test_what_is_not_known_has_no_key(self):
        assert set(KEPT.to_json()) == {"target", "path", "sha256", "origin"}
        assert set(MADE.to_json()) == {
            "target", "path", "sha256", "reference", "model", "weights_sha256", "refiner_sha256", "fusion", "device",
            "model_sha256",
        }  # fmt: skip
        with_map = Provenance("t2w", "unet", "ab" * 32, None, "mean", "cpu", "maps/s-t2f-confidence.nii.gz")
        assert with_map.to_json()["confidence"] == "maps/s-t2f-confidence.nii.gz"

    def test_an_older_record_knows_no_checksums_of_inputs(self):
        form = OUTCOME.to_json()
        del form["input_sha256"], form["outputs"][0]["model_sha256"]
        assert Outcome.from_json(form) == replace(OUTCOME, input_sha256={})

    def test_an_older_record_calls_the_fusion_joined(self):
        form = OUTCOME.to_json()
        (output,) = form["outputs"]
        output["joined"] = output.pop("fusion")
        assert Outcome.from_json(form) == OUTCOME

    @pytest.mark.parametrize("change", [{"status": "lost"}, {"outputs": [{}]}, {"outputs": 3}, {"outputs": [3]}])
    def test_something_else_is_refused(self, change):
        with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
            Outcome.from_json({**OUTCOME.to_json(), **change})
