from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from app.core.startup import TUNABLES, WAIT_POLICY, tuned_environment


def test_settings_are_added_once_and_only_where_they_are_understood():
    asked = tuned_environment({"PATH": "/bin"}, "glibc")
    assert asked == {"PATH": "/bin", "GLIBC_TUNABLES": TUNABLES, "OMP_WAIT_POLICY": WAIT_POLICY}
    assert tuned_environment(asked, "glibc") is None
    assert tuned_environment({}, "musl") is None


@pytest.mark.parametrize("memory", [{"GLIBC_TUNABLES": "glibc.malloc.check=1"}, {"MALLOC_ARENA_MAX": "2"}])
@pytest.mark.parametrize("waiting", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "100"}])
def test_a_users_own_settings_stay(memory, waiting):
    assert tuned_environment({**memory, **waiting}, "glibc") is None
    assert tuned_environment(memory, "glibc") == {**memory, "OMP_WAIT_POLICY": WAIT_POLICY}
    assert tuned_environment(waiting, "glibc") == {**waiting, "GLIBC_TUNABLES": TUNABLES}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library has no such settings")
def test_the_command_starts_anew_with_its_arguments():
    ours = ("GLIBC_TUNABLES", "MALLOC_", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    plain = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    script = (
        "import os, sys; from app.core.startup import start_tuned; start_tuned(); "
        "print(os.environ['GLIBC_TUNABLES'], os.environ['OMP_WAIT_POLICY'], *sys.argv)"
    )
    done = subprocess.run([sys.executable, "-c", script, "a b"], env=plain, check=True, capture_output=True, text=True)
    assert done.stdout == f"{TUNABLES} {WAIT_POLICY} -c a b\n"
