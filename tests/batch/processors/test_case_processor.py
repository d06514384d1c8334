from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from app.batch.outcomes import exit_code_of
from app.batch.processors import case_processor
from app.batch.run import run
from app.core.errors import CaseError
from app.inference.pipeline import Prepared
from app.registry.manifest import add_file, read_manifest
from tests.batch.helpers import config_of, names_in
from tests.preprocessing.quality import STRANGE, quality_file


class TestExpectation:
    @pytest.fixture
    def telling(self, tmp_path, weights_dir):
        folder = tmp_path / "telling"
        shutil.copytree(weights_dir, folder)
        add_file(read_manifest(folder).entry("tiny"), "quality", quality_file(ranges=STRANGE))
        return folder

    def test_the_record_has_it(self, three, telling):
        shutil.rmtree(three / "in" / "b")
        outcomes = run(config_of(three, telling, model="tiny")).outcomes
        expected = outcomes[0].outputs[0].to_json()["expected"]
        assert expected["ssim_brain"] == {"expected": 0.7, "low": 0.6, "high": 0.75}
        assert len(expected["unlike"]) == 1
        assert [w for w in outcomes[0].warnings if w.startswith("a is unlike the exams that tiny learnt from")]

    def test_what_is_kept_is_judged_by_its_header(self, three, telling, weights_dir, caplog):
        shutil.rmtree(three / "in" / "b")
        config = config_of(three, telling, model="tiny")
        run(config)
        enough, more = (replace(config, model=replace(config.model, min_expected_ssim=v)) for v in (0.7, 0.8))
        assert [o.status for o in run(enough).outcomes] == ["kept"] * 2
        outcomes = run(more).outcomes
        assert [o.status for o in outcomes] == ["failed"] * 2
        assert "a-t2f.nii.gz, of an earlier run, is still there: remove it." in outcomes[0].error
        # Refused once, it is refused again.
        assert [o.status for o in run(more).outcomes] == ["failed"] * 2
        # Made without an expectation, it is made again.
        run(replace(config_of(three, weights_dir, model="tiny"), overwrite=True))
        assert [o.status for o in run(enough).outcomes] == ["made"] * 2

    @pytest.mark.parametrize("stage", ["predict", "finish"])
    def test_a_broken_network_has_no_fallback_that_nobody_can_judge(self, three, telling, monkeypatch, stage):
        def broken(*_):
            raise CaseError("too large")

        monkeypatch.setattr(case_processor, stage, broken)
        config = config_of(three, telling, model="tiny")
        summary = run(replace(config, model=replace(config.model, min_expected_ssim=0.1)))
        assert [o.status for o in summary.outcomes] == ["failed"] * 3
        assert not list((three / "out").glob("*.nii.gz"))

    def test_what_is_refused_is_not_made_by_another(self, three, telling):
        config = config_of(three, telling, model="tiny")
        summary = run(replace(config, model=replace(config.model, min_expected_ssim=0.8)))
        assert [o.status for o in summary.outcomes] == ["failed"] * 3
        assert "0.8 is asked for by --min-expected-ssim" in summary.outcomes[0].error
        assert not list((three / "out").glob("*.nii.gz"))


class TestFallback:
    def test_fallback_makes_every_output_and_says_so(self, three, weights_dir, caplog):
        summary = run(config_of(three, weights_dir, model="tiny"))
        assert exit_code_of(summary) == 0
        assert names_in(three / "out") == ["a-t2f.nii.gz", "b-t2f.nii.gz", "c-t2f.nii.gz"]
        # A damaged file is no reason to do without the network: it works with any sequences that are left.
        assert [o.outputs[0].model for o in summary.outcomes] == ["tiny"] * 3
        assert list(summary.outcomes[1].inputs) == ["t1c", "t2w"]
        assert "b-t1n.nii.gz" in caplog.text
        assert "t2f made from what is left (t1c, t2w), less surely than from three (--on-error fallback)" in caplog.text
        again = run(config_of(three, weights_dir, model="tiny"))
        assert [o.status for o in again.outcomes] == ["kept"] * 3

    @pytest.mark.parametrize("on_error", ["fallback", "skip"])
    def test_a_network_that_overflows_is_no_success(self, three, weights_dir, monkeypatch, on_error, caplog):
        real = case_processor.predict

        def overflowing(*arguments):
            made = real(*arguments)
            return replace(made, volume=np.where(made.volume > 0, np.inf, made.volume).astype(np.float32))

        for name in "bc":
            shutil.rmtree(three / "in" / name)
        monkeypatch.setattr(case_processor, "predict", overflowing)
        summary = run(config_of(three, weights_dir, model="tiny", on_error=on_error))
        assert "values that are not finite" in caplog.text
        assert [o.status for o in summary.outcomes] == ["made" if on_error == "fallback" else "failed"]
        if on_error == "fallback":
            assert summary.outcomes[0].outputs[0].model == "regression"

    def test_weights_of_ones_own_need_no_regression_beside_them(self, three, weights_dir, tmp_path, monkeypatch):
        own = tmp_path / "own"
        shutil.copytree(weights_dir, own)
        form = json.loads((own / "manifest.json").read_text())
        del form["models"]["regression"]
        (own / "manifest.json").write_text(json.dumps(form | {"default": "tiny", "fallback": None}))

        def never(*_):
            raise CaseError("too large")

        monkeypatch.setattr(case_processor, "predict", never)
        summary = run(config_of(three, own, model="tiny"))
        assert exit_code_of(summary) == 0
        assert {o.outputs[0].model for o in summary.outcomes} == {"regression"}

    @pytest.mark.parametrize("stage", ["predict", "finish"])
    @pytest.mark.parametrize("error", [CaseError("too large"), RuntimeError("a fault of the driver")])
    def test_a_network_that_breaks_is_replaced(self, three, weights_dir, monkeypatch, error, stage, caplog):
        real = getattr(case_processor, stage)

        def sometimes(*arguments):
            prepared = next(a for a in arguments if isinstance(a, Prepared))
            if "/a/" in str(prepared.grids["t1n"].path):
                raise error
            return real(*arguments)

        shutil.rmtree(three / "in" / "b")
        monkeypatch.setattr(case_processor, stage, sometimes)
        summary = run(config_of(three, weights_dir, model="tiny"))
        assert [o.outputs[0].model for o in summary.outcomes] == ["regression", "tiny"]
        assert str(error) in caplog.text
        # The fallback's output is no reason to pass over the subject when the network works again.
        monkeypatch.setattr(case_processor, stage, real)
        again = run(config_of(three, weights_dir, model="tiny"))
        assert [(o.status, o.outputs[0].model) for o in again.outcomes] == [("made", "tiny"), ("kept", None)]
        monkeypatch.setattr(case_processor, stage, sometimes)
        shutil.rmtree(three / "out")
        strict = run(config_of(three, weights_dir, model="tiny", on_error="skip"))
        assert [o.status for o in strict.outcomes] == ["failed", "made"]

    def test_damage_that_only_decoding_shows(self, three, weights_dir):
        source = three / "in" / "c" / "c-t1c.nii.gz"
        content = bytearray(source.read_bytes())
        content[len(content) // 2] ^= 0xFF
        source.write_bytes(content)
        shutil.rmtree(three / "in" / "b")
        summary = run(config_of(three, weights_dir))
        assert [o.status for o in summary.outcomes] == ["made", "made"]
        assert "t1c" not in summary.outcomes[1].inputs
        assert exit_code_of(run(config_of(three, weights_dir, on_error="skip", overwrite=True))) == 1

    def test_all_missing_are_made_when_asked(self, tmp_path, write_subject, weights_dir):
        write_subject(tmp_path / "in" / "a", lacks=("t1c", "t2f"))
        run(config_of(tmp_path, weights_dir, complete_all=True, on_error="skip"))
        assert names_in(tmp_path / "out") == ["a-t1c.nii.gz", "a-t2f.nii.gz"]
