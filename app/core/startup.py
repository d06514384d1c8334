"""Choose memory and thread settings of the process before anything large is loaded.

Networks on a processor ask for and return megabytes at every layer. By default glibc gives each such block back to the
system, which clears it again page by page (4 KB) at the next layer; in a virtual machine that can take as long as the
network's own work. Kept, and in pages of 2 MB, it costs nothing. `python -m benchmarks speed` measures it.

Threads of OpenMP wait for one another by spinning, hundreds of times per exam and layer. With a core each that is the
fastest way to wait. Where another process takes a core, waiting threads keep the awaited one from running, and an exam
takes several times as long (`python -m benchmarks sharing`). Hospitals' batch machines are shared, so ours
spin for less than a millisecond and then sleep.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Mapping

#: Read by glibc when a process starts (`man 3 mallopt`): huge pages, blocks of up to 32 MB (the most that it accepts)
#: from the heap, and nothing of the heap returned below 4 GB.
TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=4294967296"
#: Read by OpenMP when torch loads it.
SPIN_COUNT = "10000"
#: Asks the system for a signal when the parent has ended (`man 2 prctl`).
_PR_SET_PDEATHSIG = 1


def tuned_environment(environment: Mapping[str, str], libc: str) -> dict[str, str] | None:
    """Return the environment with missing settings added, or None where none is missing.

    Whoever has settings of their own keeps them.

    Args:
        libc: the C library's name; only with `glibc` has a process these settings.
    """
    if libc != "glibc":
        return None
    added = {}
    if "GLIBC_TUNABLES" not in environment and not any(k.startswith("MALLOC_") for k in environment):
        added["GLIBC_TUNABLES"] = TUNABLES
    if "OMP_WAIT_POLICY" not in environment and "GOMP_SPINCOUNT" not in environment:
        added["GOMP_SPINCOUNT"] = SPIN_COUNT
    return {**environment, **added} if added else None


def start_tuned() -> None:
    """Restart this process once with settings that suit networks; return where none is missing.

    The interpreter's own flags stay: one that is isolated must not look for code in the working directory afterwards.
    """
    environment = tuned_environment(os.environ, platform.libc_ver()[0])
    if environment is not None and sys.orig_argv and sys.executable:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def end_with_parent() -> None:
    """Have the system end this process when the one that started it is killed, and would leave it alone."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
