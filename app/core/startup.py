"""How the process gets its memory and how its threads wait, decided before anything large is loaded.

Networks on a processor ask for and return megabytes at every layer. By default glibc gives each such block back to the
system, which clears it again page by page (4 KB) at the next layer; in a virtual machine that can take as long as the
network's own work. Kept, and in pages of 2 MB, it costs nothing. `python -m benchmarks speed` measures it.

Threads of OpenMP wait for one another by spinning, hundreds of times per exam and layer. With a core each that is the
fastest way to wait; where another process takes a core, those that wait keep the one they wait for from running, and an
exam takes several times as long (`python -m benchmarks sharing`). Hospitals' batch machines are shared, so ours sleep.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping

#: Read by glibc when a process starts (`man 3 mallopt`): huge pages, blocks of up to 32 MB (the most that it accepts)
#: from the heap, and nothing of the heap returned below 4 GB.
TUNABLES = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=4294967296"
#: Read by OpenMP when torch loads it.
WAITING = "passive"


def tuned(environment: Mapping[str, str], libc: str) -> dict[str, str] | None:
    """The environment that a process should have been started with; None where it is good as it is.

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
        added["OMP_WAIT_POLICY"] = WAITING
    return {**environment, **added} if added else None


def start_tuned() -> None:
    """Starts this very process anew, once, with settings that suit networks; returns where there is no need."""
    environment = tuned(os.environ, platform.libc_ver()[0])
    if environment is not None and sys.orig_argv and sys.executable:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
