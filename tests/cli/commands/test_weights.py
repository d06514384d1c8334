from __future__ import annotations

import shutil

import pytest

from app.cli import main
from app.core.errors import ExitCode
from app.registry.manifest import read_manifest


@pytest.fixture
def copy(weights_dir, tmp_path):
    return shutil.copytree(weights_dir, tmp_path / "w")


def test_export_without_a_run_adds_the_graph(copy, monkeypatch, capsys):
    monkeypatch.setattr("app.registry.onnx_export.to_onnx", lambda *_: b"graph")
    assert main(["export", "--weights", str(copy), "--model", "tiny"]) == ExitCode.OK
    assert read_manifest(copy).entry("tiny").path_of("onnx").read_bytes() == b"graph"
    assert f"tiny has {copy / 'tiny.onnx'} now" in capsys.readouterr().err


@pytest.mark.parametrize("lacks", ["--data", "--model"])
def test_export_of_a_run_says_what_it_needs(copy, tmp_path, lacks, capsys):
    options = {"--data": str(tmp_path), "--model": "new"}
    del options[lacks]
    words = [word for pair in options.items() for word in pair]
    assert main(["export", str(tmp_path / "run"), "--weights", str(copy), *words]) == ExitCode.USAGE
    assert "export RUN needs --data" in capsys.readouterr().err


def test_the_regression_is_fitted_and_becomes_the_fallback(training_data, tmp_path, capsys):
    assert main(["fit-regression", "--data", str(training_data), "--weights", str(tmp_path / "w")]) == ExitCode.OK
    manifest = read_manifest(tmp_path / "w")
    assert (manifest.default, manifest.fallback) == ("regression", "regression")
    assert "Fitted on 3 subjects" in capsys.readouterr().err


def test_a_network_is_measured_for_eight_bits(confident_weights, training_data, tmp_path, capsys):
    folder = shutil.copytree(confident_weights, tmp_path / "w")
    words = ["weights", "calibrate", str(folder), "--model", "unet", "--data", str(training_data)]
    assert main(words) == ExitCode.OK
    assert read_manifest(folder).entry("unet").path_of("int8").exists()
    assert f"unet has {folder / 'unet-int8.json'} now" in capsys.readouterr().err


def test_a_folder_of_today_needs_no_upgrade(copy, capsys):
    before = {p.name: p.read_bytes() for p in copy.iterdir()}
    assert main(["weights", "upgrade", str(copy)]) == ExitCode.WEIGHTS
    assert "nothing to upgrade" in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in copy.iterdir()} == before


def test_a_folder_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["weights", "upgrade", str(tmp_path / "gone")]) == ExitCode.WEIGHTS
    assert "manifest.json cannot be read" in capsys.readouterr().err
