"""The challenge's own caller accepts the output; the Dockerfile is clean; the built image keeps the contract."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest

from app.batch.run import run
from app.core.config import WEIGHTS_DIR, ModelOptions, RunConfig
from app.core.constants import MODALITIES
from app.data.nifti_reader import load_volume
from app.preprocessing.normalization import rescale_as_scored
from app.preprocessing.similarity import ssim_map
from app.registry.manifest import read_manifest

ROOT = Path(__file__).parents[2]


def _brats() -> tuple[Any, type[Exception]]:
    """The caller's output check and its exception; importing them leaves an open socket to the collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from brats.core.docker import _sanity_check_output
        from brats.utils.exceptions import BraTSContainerException

        gc.collect()
    return _sanity_check_output, BraTSContainerException


def _brats_check(source: Path, output: Path) -> None:
    _brats()[0](source, output, container_output="")


@pytest.fixture
def challenge(tmp_path, write_subject):
    for number, lack in enumerate(("t1c", "t1n", "t2f", "t2w")):
        write_subject(tmp_path / "in" / f"BraTS-GLI-0000{number}-000", lacks=(lack,))
    return tmp_path


def test_the_callers_output_check_passes_and_would_notice_a_missing_output(challenge):
    run(RunConfig(challenge / "in", challenge / "out", model=ModelOptions(model="regression")))
    _brats_check(challenge / "in", challenge / "out")
    next((challenge / "out").iterdir()).unlink()
    with pytest.raises(_brats()[1]):
        _brats_check(challenge / "in", challenge / "out")


def test_hadolint_finds_nothing():
    tool = shutil.which("hadolint", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if tool is None:
        pytest.skip("hadolint is not installed")
    result = subprocess.run([tool, ROOT / "Dockerfile"], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_entrypoint_hands_its_arguments_on():
    environment = {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    result = subprocess.run(
        ["sh", ROOT / "entrypoint.sh", "--version"],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        cwd="/",
    )
    assert result.stdout.startswith("tetrad "), result.stderr


@pytest.mark.skipif("TETRAD_IMAGE" not in os.environ, reason="TETRAD_IMAGE names no built image")
class TestImage:
    """With TETRAD_IMAGE a tag and TETRAD_RUN a command `RUN TAG INPUT OUTPUT [arguments]` that runs it hardened."""

    def _run(self, source: Path, output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*os.environ["TETRAD_RUN"].split(), os.environ["TETRAD_IMAGE"], str(source), str(output), *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True)

    def test_the_default_makes_two_subjects_with_the_challenges_flags(self, challenge, data_dir):
        shutil.rmtree(challenge / "in")
        subjects, lacking = sorted((data_dir / "val").iterdir())[:2], ("t2f", "t1c")
        for number, (subject, lacks) in enumerate(zip(subjects, lacking, strict=True)):
            name = f"BraTS-GLI-0000{number}-000"
            (challenge / "in" / name).mkdir(parents=True)
            for modality in set(MODALITIES) - {lacks}:
                shutil.copy(
                    subject / f"{subject.name}-{modality}.nii.gz",
                    challenge / "in" / name / f"{name}-{modality}.nii.gz",
                )
        _open_to_all(challenge)
        result = self._run(challenge / "in", challenge / "out")
        assert result.returncode == 0, result.stderr
        outputs = sorted((challenge / "out").iterdir())
        assert [p.name for p in outputs] == ["BraTS-GLI-00000-000-t2f.nii.gz", "BraTS-GLI-00001-000-t1c.nii.gz"]
        manifest = read_manifest(WEIGHTS_DIR)
        for path, subject, lacks in zip(outputs, subjects, lacking, strict=True):
            made, truth = load_volume(path), load_volume(subject / f"{subject.name}-{lacks}.nii.gz")
            assert made.grid.same_as(truth.grid)
            # By the trained default, not by what stands in for it.
            maker = manifest.specialists_of(manifest.entry())[lacks]
            assert maker.name in str(nib.load(path).header["descrip"])
            inside = truth.data > 0
            assert ssim_map(rescale_as_scored(made.data), rescale_as_scored(truth.data))[inside].mean() > 0.58
        _brats_check(challenge / "in", challenge / "out")

    def test_nothing_to_do(self, tmp_path):
        (tmp_path / "in").mkdir()
        _open_to_all(tmp_path)
        assert self._run(tmp_path / "in", tmp_path / "out").returncode == 3

    def test_demo_and_info_run_inside(self, tmp_path):
        (tmp_path / "in").mkdir()
        _open_to_all(tmp_path)
        assert self._run(tmp_path / "in", tmp_path / "out", "info").returncode == 0
        result = self._run(tmp_path / "in", tmp_path / "out", "demo", "--output", "/tmp/demo")
        assert result.returncode == 0, result.stderr


def _open_to_all(folder: Path) -> None:
    """The image runs as a user that owns nothing here."""
    for path in (*folder.parents, *folder.rglob("*")):
        if path.owner() == os.environ.get("USER", "root") and path != Path("/"):
            path.chmod(path.stat().st_mode | (0o055 if path.is_dir() else 0o044))
    folder.chmod(0o755)
