from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from app.core.startup import SPIN_COUNT, TUNABLES, tuned_environment

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library has no such settings")


def test_settings_are_added_once_and_only_where_they_are_understood():
    asked = tuned_environment({"PATH": "/bin"}, "glibc")
    assert asked == {"PATH": "/bin", "GLIBC_TUNABLES": TUNABLES, "GOMP_SPINCOUNT": SPIN_COUNT}
    assert tuned_environment(asked, "glibc") is None
    assert tuned_environment({}, "musl") is None


@pytest.mark.parametrize("memory", [{"GLIBC_TUNABLES": "glibc.malloc.check=1"}, {"MALLOC_ARENA_MAX": "2"}])
@pytest.mark.parametrize("waiting", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "100"}])
def test_a_users_own_settings_stay(memory, waiting):
    assert tuned_environment({**memory, **waiting}, "glibc") is None
    assert tuned_environment(memory, "glibc") == {**memory, "GOMP_SPINCOUNT": SPIN_COUNT}
    assert tuned_environment(waiting, "glibc") == {**waiting, "GLIBC_TUNABLES": TUNABLES}


@glibc
def test_the_command_starts_anew_with_its_arguments():
    ours = ("GLIBC_TUNABLES", "MALLOC_", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    plain = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    script = (
        "import os, sys; from app.core.startup import start_tuned; start_tuned(); "
        "print(os.environ['GLIBC_TUNABLES'], os.environ['GOMP_SPINCOUNT'], *sys.argv)"
    )
    done = subprocess.run([sys.executable, "-c", script, "a b"], env=plain, check=True, capture_output=True, text=True)
    assert done.stdout == f"{TUNABLES} {SPIN_COUNT} -c a b\n"


@glibc
@pytest.mark.parametrize("flags", [["-I", "-B"], ["-P", "-s", "-E"], ["-X", "utf8"]])
def test_the_interpreters_flags_outlive_the_new_start(flags):
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from app.core.startup import start_tuned; start_tuned(); "
        "print(sys.flags)"
    )
    root = str(Path(__file__).parents[2])
    told = [
        subprocess.run(
            [sys.executable, *flags, "-c", code, root],
            env={"LC_ALL": "C.UTF-8"},
            cwd="/",
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for code in (script, "import sys; print(sys.flags)")
    ]
    assert told[0] == told[1]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends children so")
def test_a_killed_parent_does_not_leave_its_child_alone():
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from app.core.startup import end_with_parent; "
        "end_with_parent(); print('ready', flush=True); time.sleep(60)"
    )
    shell = subprocess.Popen(
        ["sh", "-c", '"$@" & wait', "sh", sys.executable, "-c", script, str(Path(__file__).parents[2])],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert shell.stdout is not None
    with shell.stdout as stream:
        assert stream.readline() == "ready\n"
        shell.kill()
        # The end of the pipe: the child, which holds it too, is gone.
        assert stream.read() == ""
    shell.wait()
