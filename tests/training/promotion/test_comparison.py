from __future__ import annotations

import shutil

from app.core.constants import MODALITIES
from app.core.errors import ExitCode, UsageError
from app.evaluation.scoring import VolumeScores
from app.registry.manifest import read_manifest
from app.training import validation
from tests.training.helpers import export


class TestPlace:
    """A model takes the place of one that is not better."""

    def test_a_worse_model_is_refused_unless_forced(self, trained, tmp_path, capsys, monkeypatch):
        similarity = [0.6]

        def scored(*_):
            values = {"official_healthy": 0.9, "official_tumour": 0.99, "ssim_brain": similarity[0]}
            return [VolumeScores("phantom-7", m, values) for m in MODALITIES]

        monkeypatch.setattr(validation, "score_missing_sequences", scored)
        monkeypatch.setattr("app.registry.onnx_export.to_onnx", lambda *_: b"graph")
        arguments = ("--score-on", str(trained / "unseen"), "--weights", str(tmp_path / "w"))
        assert export(trained, *arguments) == ExitCode.OK
        before = (tmp_path / "w" / "manifest.json").read_bytes()
        similarity[0] = 0.599
        assert export(trained, *arguments) == ExitCode.USAGE
        message = capsys.readouterr().err
        assert "is worse than 'mine', which it would replace, in ssim_brain 0.5990 (before 0.6000)" in message
        assert "(not in official_healthy 0.9000 (before 0.9000), official_tumour" in message
        assert (tmp_path / "w" / "manifest.json").read_bytes() == before
        # What is a hair behind says so with enough digits to see it.
        similarity[0] = 0.599999
        assert export(trained, *arguments) == ExitCode.USAGE
        assert "in ssim_brain 0.599999 (before 0.600000)" in capsys.readouterr().err
        similarity[0] = 0.599
        assert export(trained, *arguments, "--force") == ExitCode.OK
        # Equal is not worse.
        assert export(trained, *arguments) == ExitCode.OK

        def broken(*_):
            raise UsageError("no ONNX today")

        # A model whose ONNX cannot be made takes nobody's place.
        before = {p.name: p.read_bytes() for p in (tmp_path / "w").iterdir()}
        monkeypatch.setattr("app.registry.onnx_export.to_onnx", broken)
        assert export(trained, *arguments) == ExitCode.USAGE
        assert {p.name: p.read_bytes() for p in (tmp_path / "w").iterdir()} == before

    def test_the_model_that_would_lose_its_place_is_scored_too(self, trained, weights_dir, tmp_path):
        shutil.copytree(weights_dir, tmp_path / "w")
        code = export(
            trained, "--weights", str(tmp_path / "w"), "--make-default", "--score-on", str(trained / "unseen")
        )
        # Two steps of training do not beat the regression, which is the default there.
        assert code == ExitCode.USAGE
        assert "mine" not in read_manifest(tmp_path / "w").entries
