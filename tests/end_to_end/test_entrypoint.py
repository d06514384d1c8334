"""The container's start: no code but the image's, signals from its first line on, closed streams, little memory."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.batch.helpers import names_in

ENTRYPOINT = Path(__file__).parents[2] / "entrypoint.sh"
#: Names that Python, or Tetrad, imports or runs at one time or another.
MODULES = ("json", "numpy", "torch", "nibabel", "sitecustomize", "usercustomize", "multiprocessing", "platform", "re")
PROGRAMS = ("python", "dirname", "uname")
SEARCH = os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])


@pytest.fixture
def hostile(tmp_path) -> Path:
    """A folder full of code that leaves a trace when it is run; packages of the user's own among it."""
    folder = tmp_path / "data"
    packages = folder / ".local" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    packages.mkdir(parents=True)
    trace = tmp_path / "trace"
    for place in (folder, packages):
        for name in MODULES:
            (place / f"{name}.py").write_text(f"open({str(trace)!r}, 'a').write('{name}\n')\n")
        (place / "app").mkdir()
        for name in ("__init__", "__main__"):
            (place / "app" / f"{name}.py").write_text(f"open({str(trace)!r}, 'a').write('app\n')\n")
    (packages / "own.pth").write_text("import sitecustomize\n")
    (folder / "matplotlibrc").write_text("font.size: 50\n")
    for name in PROGRAMS:
        (folder / name).write_text(f"#!/bin/sh\necho {name} >>{trace}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def start(hostile) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the container's start in the hostile folder; fails where any of its code was run."""

    def run(*arguments: str | Path, shell: str = '"$@"', **environment: str) -> subprocess.CompletedProcess[str]:
        command = ["sh", "-c", shell, "sh", "sh", ENTRYPOINT, *arguments]
        done = subprocess.run(
            command, cwd=hostile, env={"PATH": SEARCH, **environment}, check=False, capture_output=True, text=True
        )
        assert "Traceback" not in done.stderr
        trace = hostile.parent / "trace"
        assert not trace.exists(), trace.read_text()
        return done

    return run


WAYS: dict[str, Callable[[Path], dict[str, str]]] = {
    "working directory": lambda _: {},
    "path": lambda data: {"PYTHONPATH": str(data)},
    "empty part of the path": lambda _: {"PYTHONPATH": ":/nowhere"},
    "home of Python": lambda data: {"PYTHONHOME": str(data)},
    "start file": lambda data: {"PYTHONSTARTUP": str(data / "json.py"), "PYTHONINSPECT": "1"},
    "packages of the user": lambda data: {"HOME": str(data)},
    "base of the user's packages": lambda data: {"PYTHONUSERBASE": str(data / ".local")},
    "filter of warnings": lambda data: {"PYTHONWARNINGS": "error::json.X", "PYTHONPATH": str(data)},
    "search for programs": lambda _: {"PATH": f".:{SEARCH}:"},
    "search for libraries": lambda _: {"LD_LIBRARY_PATH": ":.:relative"},
    "shell's start": lambda data: {"ENV": str(data / "python"), "BASH_ENV": str(data / "python"), "CDPATH": str(data)},
}


@pytest.mark.parametrize("way", WAYS)
def test_no_way_leads_to_code_in_the_data(start, hostile, subject, tmp_path, way):
    done = start("check", "--input", tmp_path / "in", **WAYS[way](hostile))
    assert done.returncode == 0, done.stderr
    assert "sub01" in done.stdout


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_package")
def test_neither_do_child_processes_or_pictures(start, hostile, subject, tmp_path, weights_dir):
    environment = {"PYTHONPATH": f":{hostile}", "HOME": str(hostile), "MATPLOTLIBRC": str(hostile), "MPLBACKEND": "app"}
    done = start("--input", tmp_path / "in", "--output", tmp_path / "out", "--report-dir", tmp_path / "report",
                 "--weights", weights_dir, "--model", "regression", "--device", "cpu,cpu", **environment)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert names_in(tmp_path / "out") == ["sub01-t2f.nii.gz"]
    assert (tmp_path / "report" / "pictures" / "sub01-t2f.png").exists()


def test_it_is_found_by_a_relative_name():
    for folder, name in (
        (ENTRYPOINT.parent, ENTRYPOINT.name),
        (ENTRYPOINT.parents[1], "/".join(ENTRYPOINT.parts[-2:])),
    ):
        done = subprocess.run(
            ["sh", name, "--version"], check=False, cwd=folder, env={"PATH": SEARCH}, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout.split()[0]) == (0, "tetrad"), done.stderr


def _child_of(number: int) -> int:
    children = Path(f"/proc/{number}/task/{number}/children").read_text().split()
    return int(children[0]) if children else 0


def _catches(number: int, signals: tuple[signal.Signals, ...]) -> bool:
    """Tell whether a process has asked for signals; before that they are not its own."""
    try:
        status = Path(f"/proc/{number}/status").read_text()
    except OSError:
        return False
    caught = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), 16)
    return all(caught >> (s - 1) & 1 for s in signals)


class TestSignals:
    """The first process of a container must ask for signals: they are lost otherwise."""

    ENDING = (signal.SIGTERM, signal.SIGINT)

    @pytest.fixture(params=["first process", "any process"])
    def begin(self, request, subject, tmp_path):
        """Begins a run; returns its process, and the number of the entrypoint's."""
        alone = ["unshare", "--pid", "--fork", "--kill-child"] if request.param == "first process" else []
        if alone and (shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode):
            pytest.skip("namespaces are not allowed here")
        begun: list[subprocess.Popen[str]] = []

        def run() -> tuple[subprocess.Popen[str], int]:
            command = [
                # Whoever runs the tests in the background has Ctrl-C ignored, and no shell can undo that.
                *(["env", "--default-signal=INT"] if shutil.which("env") else []),
                *alone,
                "sh",
                str(ENTRYPOINT),
                "--input",
                str(tmp_path / "in"),
                "--output",
                str(tmp_path / "out"),
            ]
            process = subprocess.Popen(command, env={"PATH": SEARCH}, stderr=subprocess.PIPE, text=True)
            begun.append(process)
            while not _catches(number := _child_of(process.pid) if alone else process.pid, self.ENDING):
                assert process.poll() is None
            return process, number

        yield run
        for process in begun:
            process.kill()
            process.communicate()

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    @pytest.mark.parametrize("delay", [0.0, 0.02, 0.1, 0.5])
    @pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_one_that_comes_while_python_starts_ends_the_run(self, begin, delay, number, code):
        process, entrypoint = begin()
        time.sleep(delay)
        os.kill(entrypoint, number)
        _, messages = process.communicate(timeout=60)
        assert process.returncode == code
        assert "Traceback" not in messages

    def test_codes_come_through(self, start, tmp_path):
        assert start("--nonsense").returncode == 2
        assert start("check", "--input", tmp_path / "none").returncode == 2
        (tmp_path / "in").mkdir()
        assert start("--input", tmp_path / "in", "--output", tmp_path / "out").returncode == 3


@pytest.mark.parametrize("locale", ["C", "POSIX", "xx_XX.none"])
def test_names_are_text_in_every_locale(start, write_subject, tmp_path, locale):
    write_subject(tmp_path / "in" / "Müller-患者")
    done = start("check", "--input", tmp_path / "in", LC_ALL=locale)
    assert (done.returncode, "t2f" in done.stdout) == (0, True)


class TestStreams:
    @pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-", "2>/dev/full"])
    def test_who_does_not_listen_gets_the_images_all_the_same(self, start, subject, tmp_path, weights_dir, closed):
        done = start("--input", tmp_path / "in", "--output", tmp_path / "out", "--weights", weights_dir, "--model",
                     "regression", shell=f'exec "$@" {closed}')  # fmt: skip
        assert done.returncode == 0
        assert names_in(tmp_path / "out") == ["sub01-t2f.nii.gz"]

    @pytest.mark.parametrize("lacks", [("t2f",), ("t2f", "t2w")])
    def test_a_reader_that_goes_does_not_change_the_code(self, write_subject, tmp_path, lacks):
        write_subject(tmp_path / "in" / "sub01", lacks=lacks)
        command = ["sh", str(ENTRYPOINT), "check", "--on-error", "skip", "--input", str(tmp_path / "in")]
        process = subprocess.Popen(command, env={"PATH": SEARCH}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.close()
        messages = process.stderr.read()
        process.stderr.close()
        assert process.wait() == (0 if len(lacks) == 1 else 1)
        assert b"Broken" not in messages


@pytest.mark.parametrize("megabytes", [200, 1000])
def test_little_memory_is_one_sentence(subject, tmp_path, weights_dir, megabytes):
    command = [sys.executable, "-m", "app", "--input", tmp_path / "in", "--output", tmp_path / "out", "--weights",
               weights_dir, "--model", "regression", "--profile", "hospital"]  # fmt: skip
    done = subprocess.run(
        command, cwd=ENTRYPOINT.parent, check=False, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (megabytes * 10**6, resource.RLIM_INFINITY)),
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "memory" in done.stderr.lower() or "lacks" in done.stderr or done.returncode == 0
    assert done.returncode in {0, 5}
    assert (done.returncode == 0) is (tmp_path / "out" / "sub01-t2f.nii.gz").exists()
