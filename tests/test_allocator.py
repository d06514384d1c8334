from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from app.allocator import TUNABLES, tuned


def test_settings_are_added_once_and_only_where_they_are_understood():
    asked = tuned({"PATH": "/bin"}, "glibc")
    assert asked == {"PATH": "/bin", "GLIBC_TUNABLES": TUNABLES}
    assert tuned(asked, "glibc") is None
    assert tuned({}, "musl") is None


@pytest.mark.parametrize("own", [{"GLIBC_TUNABLES": "glibc.malloc.check=1"}, {"MALLOC_ARENA_MAX": "2"}])
def test_a_users_own_settings_stay(own):
    assert tuned(own, "glibc") is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library has no such settings")
def test_the_command_starts_anew_with_its_arguments():
    plain = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES" and not k.startswith("MALLOC_")}
    script = (
        "import os, sys; from app.allocator import start_tuned; start_tuned(); "
        "print(os.environ['GLIBC_TUNABLES'], *sys.argv)"
    )
    done = subprocess.run([sys.executable, "-c", script, "a b"], env=plain, check=True, capture_output=True, text=True)
    assert done.stdout.split(maxsplit=1) == [TUNABLES, "-c a b\n"]
