from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from app.cli import main
from app.core.config import WEIGHTS_DIR, RuntimeOptions
from app.core.errors import ExitCode
from app.evaluation.scoring import find_pairs, score_pair
from app.inference.device import Machine, choose_runtime
from app.networks.architectures import UNET_WIDTHS
from app.networks.unet import Segmenter2d
from app.registry.checkpoints import load_generator
from app.registry.lineage import TrainingRecord
from app.registry.manifest import read_manifest
from app.training.checkpoint import LAST, load_state
from app.training.data.cache import NORMALIZATION
from app.training.export import _say_what_is_lost
from tests.networks.small_models import record_of, save_segmenter2d, scores_of
from tests.training.helpers import PLAIN, SMALL_OPTIONS, export, small


@pytest.mark.parametrize("name,lost", [("unet-t1c", ["followed by enhancer", "expected"]), ("unet-t2w", ["expected"])])
def test_what_the_weights_before_had_is_not_lost_in_silence(name, lost, caplog):
    before = read_manifest(WEIGHTS_DIR).entry(name)
    plain = before.spec.model_copy(update={"refiner": None, "refine": False})
    files = {role: file for role, file in before.files.items() if role != "quality"}
    _say_what_is_lost(before, replace(before, spec=plain, files=files))
    assert len(caplog.messages) == len(lost)
    assert all(words in said for words, said in zip(lost, caplog.messages, strict=True))
    caplog.clear()
    _say_what_is_lost(before, before)
    assert not caplog.messages


class TestCommands:
    """From data to a model that completes an exam, as a user does it."""

    def test_export_needs_scores_and_then_completes_an_exam(self, trained, tmp_path, capsys):
        assert export(trained) == ExitCode.USAGE
        assert "only with scores" in capsys.readouterr().err
        assert export(trained, "--score-on", str(trained / "data")) == ExitCode.USAGE
        assert "was trained on" in capsys.readouterr().err
        assert (
            export(trained, "--score-on", str(trained / "unseen"), "--contrast", "0.25", "--detail", "1.5")
            == ExitCode.OK
        )
        entry = read_manifest(trained / "w").entry("mine")
        assert (entry.spec.contrast, entry.spec.detail) == (0.25, 1.5)
        assert {"torch", "onnx", "intensity"} <= set(entry.files)
        assert scores_of(trained / "w", "mine").subjects == ("phantom-7",)
        assert {"t1c", "t1n", "t2f", "t2w"} == set(scores_of(trained / "w", "mine").by_target)
        assert record_of(trained / "w", "mine").recipe["network"]["preset"] == "compact"
        assert len(record_of(trained / "w", "mine").subjects) == 2
        # What was scored in memory is what a user's run scores from files, in the same precision.
        precision = choose_runtime({"torch"}, Machine.probe(), RuntimeOptions("cpu")).precision
        main(["dropout", "--each", "--input", str(trained / "unseen"), "--output", str(tmp_path / "dropped")])
        code = main(["synthesize", "--input", str(tmp_path / "dropped"), "--output", str(tmp_path / "made"),
                     "--weights", str(trained / "w"), "--on-error", "stop", "--device", "cpu",
                     "--precision", precision])  # fmt: skip
        assert code == ExitCode.OK
        pairs, _ = find_pairs(tmp_path / "made", trained / "unseen")
        mean = np.mean([score_pair(p).values["ssim_brain"] for p in pairs])
        assert mean == pytest.approx(scores_of(trained / "w", "mine").mean["ssim_brain"], abs=2e-3)

    def test_a_model_is_run_on_views_that_it_learnt(self, trained, capsys):
        assert export(trained, "--force", "--views", "axial,sagittal") == ExitCode.USAGE
        assert "output.views must be among data.views" in capsys.readouterr().err

    def test_what_the_teacher_was_trained_on_is_not_scored_on(self, trained, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("app.registry.onnx_export.to_onnx", lambda *_: b"graph")
        seen = TrainingRecord(model="segmenter", subjects=("phantom-7",))
        save_segmenter2d(tmp_path / "w", "segmenter", UNET_WIDTHS, Segmenter2d().state_dict(), NORMALIZATION,
                       small().data.canvas, training=seen)  # fmt: skip
        code = main(["train", "smoke", "--data", str(trained / "data"), "--run", str(tmp_path / "run"),
                     *SMALL_OPTIONS, "--set", "schedule.steps=1", "--set", "schedule.targets_per_batch=1",
                     "--weights", str(tmp_path / "w"), "--cache", str(trained / "run" / "cache")])  # fmt: skip
        assert code == ExitCode.OK
        assert f"--cache {trained / 'run' / 'cache'}" in capsys.readouterr().err
        export = ["export", str(tmp_path / "run"), "--data", str(trained / "data"), "--weights", str(tmp_path / "w"),
                  "--model", "mine", "--cache", str(trained / "run" / "cache")]  # fmt: skip
        assert main([*export, "--score-on", str(trained / "unseen")]) == ExitCode.USAGE
        assert "phantom-7" in capsys.readouterr().err
        assert main([*export, "--force"]) == ExitCode.OK
        assert record_of(tmp_path / "w", "mine").teacher == read_manifest(tmp_path / "w").entry("segmenter").sha256

    def test_a_start_from_another_model(self, trained, tmp_path, capsys):
        if "mine" not in (read_manifest(trained / "w").entries if (trained / "w").exists() else {}):
            assert export(trained, "--force") == ExitCode.OK
        code = main(["train", "smoke", "--data", str(trained / "data"), "--run", str(tmp_path / "next"),
                     *SMALL_OPTIONS, *PLAIN, "--set", "schedule.steps=1", "--start", "mine",
                     "--weights", str(trained / "w")])  # fmt: skip
        assert code == ExitCode.OK
        state = load_state(tmp_path / "next" / LAST)
        assert state.started_from.name == "mine"
        assert state.lineage.trainings[state.started_from.sha256].steps == 2

    def test_weights_mixed_with_those_that_the_run_began_with(self, trained, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("app.registry.onnx_export.to_onnx", lambda *_: b"graph")
        for folder, name in (("w", "first"), ("w", "mine")):
            assert main([*_export(trained, trained / "run", tmp_path / folder, name), "--force"]) == ExitCode.OK
        code = main(["train", "smoke", "--data", str(trained / "data"), "--run", str(tmp_path / "next"),
                     *SMALL_OPTIONS, *PLAIN, "--set", "schedule.steps=1", "--start", "first",
                     "--weights", str(tmp_path / "w"), "--cache", str(trained / "run" / "cache")])  # fmt: skip
        assert code == ExitCode.OK
        mix = [*_export(trained, tmp_path / "next", tmp_path / "w", "mine"), "--force", "--start-share", "0.25"]
        assert main(mix) == ExitCode.OK
        manifest = read_manifest(tmp_path / "w")
        before, mixed = (load_generator(manifest.entry(name)).state_dict() for name in ("first", "mine"))
        after = load_state(tmp_path / "next" / LAST).average
        for key, value in mixed.items():
            torch.testing.assert_close(value, 0.25 * before[key] + 0.75 * after[key], atol=1e-3, rtol=1e-3)
        assert record_of(tmp_path / "w", "mine").start_share == 0.25
        capsys.readouterr()
        # The first run began at random; another folder lacks what the second began with.
        for run, folder, message in (
            (trained / "run", tmp_path / "w", "began with random weights"),
            (tmp_path / "next", tmp_path / "empty", "does not hold the weights of 'first'"),
        ):
            refused = [*_export(trained, run, folder, "mine"), "--force", "--start-share", "0.5"]
            assert main(refused) == ExitCode.USAGE
            assert message in capsys.readouterr().err


def _export(trained, run, weights, name) -> list[str]:
    return ["export", str(run), "--data", str(trained / "data"), "--weights", str(weights), "--model", name,
            "--cache", str(trained / "run" / "cache")]  # fmt: skip
