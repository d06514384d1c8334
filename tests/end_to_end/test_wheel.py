"""The wheel, installed into an environment of its own and used from another folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from app import __version__
from app.core.errors import ExitCode
from app.core.startup import TUNABLES
from tests.conftest import once

ROOT = Path(__file__).parents[2]
#: What a wheel is built from.
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "requirements.txt")
#: Settings of this process that would change what the installed one does.
OURS = ("PYTHON", "TETRAD_", "GLIBC_TUNABLES", "MALLOC_", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
#: Notes each start of the interpreter, and the memory settings that it was started with.
NOTE = (
    "import os\n"
    "if 'STARTS' in os.environ:\n"
    "    with open(os.environ['STARTS'], 'a') as stream:\n"
    "        print(os.environ.get('GLIBC_TUNABLES', 'none'), file=stream)\n"
)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel, and with this one's packages in the place of downloads."""
    pytest.importorskip("setuptools")
    return once(tmp_path_factory, "wheel", _install) / "environment"


def _install(folder: Path) -> None:
    source, place = folder / "source", folder / "environment"
    source.mkdir()
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "app", source / "app", ignore=shutil.ignore_patterns("__pycache__"))
    (source / "weights").symlink_to(ROOT / "weights")
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source)
    (wheel,) = folder.glob("tetrad-*.whl")
    venv.create(place, with_pip=False, symlinks=True)
    _pip("--python", place / "bin" / "python", "install", "--no-deps", "--no-index", "--no-compile", wheel)
    packages = next(place.glob("lib/python*/site-packages"))
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (packages / "sitecustomize.py").write_text(NOTE)
    shutil.rmtree(source)
    wheel.unlink()


def _pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", *map(str, arguments), "-q", "--disable-pip-version-check"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def run(environment: Path, tmp_path: Path) -> Run:
    """Runs a program of the environment from a folder that has nothing to do with the repository."""
    settings = {k: v for k, v in os.environ.items() if not k.startswith(OURS)}

    def run(program: str, *arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        command = [environment / "bin" / program, *arguments]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=tmp_path, env={**settings, **more}
        )

    return run


@pytest.fixture(scope="module")
def exam(tmp_path_factory: pytest.TempPathFactory, environment: Path) -> Path:
    """A folder with one phantom that lacks T2-FLAIR, written by the installed command."""
    folder = tmp_path_factory.mktemp("exam")
    command = [environment / "bin" / "tetrad", "phantom", "--output", folder]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    next(folder.glob("*/*-t2f.nii.gz")).unlink()
    return folder


def _made_by(folder: Path) -> str:
    """What the header of the only output says of its model."""
    (output,) = folder.iterdir()
    image = nib.load(output)
    values = np.asarray(image.dataobj)
    assert values.std() > 0
    return bytes(image.header["descrip"]).decode()


def test_the_command_starts_anew_once_with_settings_for_networks(run, tmp_path):
    done = run("tetrad", "--version", STARTS=str(tmp_path / "starts"))
    assert done.stdout == f"tetrad {__version__}\n", done.stderr
    starts = (tmp_path / "starts").read_text().splitlines()
    assert starts == (["none", TUNABLES] if sys.platform == "linux" and os.confstr("CS_GNU_LIBC_VERSION") else ["none"])


def test_help_names_the_command_as_it_was_called(run):
    assert run("tetrad", "--help").stdout.startswith("usage: tetrad ")
    assert run("python", "-m", "app", "--help").stdout.startswith("usage: python -m app ")


def test_the_command_completes_an_exam_with_the_weights_of_the_wheel(run, exam, tmp_path):
    done = run("tetrad", "--input", exam, "--output", "out", "--no-flip-average", "--on-error", "stop")
    assert done.returncode == ExitCode.OK, done.stderr
    assert "unet-t2f" in _made_by(tmp_path / "out")


def test_the_environment_names_other_weights(run, exam, weights_dir, tmp_path):
    done = run("tetrad", "--input", exam, "--output", "out", "--on-error", "stop", TETRAD_WEIGHTS=str(weights_dir))
    assert done.returncode == ExitCode.OK, done.stderr
    assert "regression" in _made_by(tmp_path / "out")


def test_named_weights_without_a_manifest_are_one_sentence(run, exam, tmp_path):
    done = run("tetrad", "--input", exam, "--output", "out", TETRAD_WEIGHTS=str(tmp_path))
    assert done.returncode == ExitCode.WEIGHTS
    assert f"{tmp_path}/manifest.json cannot be read" in done.stderr
    assert "let TETRAD_WEIGHTS name a weights folder with a manifest, or unset it." in done.stderr
    assert "Traceback" not in done.stderr


def test_python_finds_the_class_and_the_weights(run, environment):
    lines = "import app, app.core.weights_dir as w; from app import Synthesizer; print(app.__file__, w.WEIGHTS_DIR)"
    done = run("python", "-c", f"{lines}; Synthesizer(model='regression')")
    assert done.returncode == 0, done.stderr
    code, weights = map(Path, done.stdout.split())
    assert code.is_relative_to(environment)
    assert weights == code.parent / "weights"
