"""What another process that wants a core costs an exam, by how OpenMP's threads wait (`app.core.startup`).

`python -m benchmarks sharing [--model NAME] [--rounds N] [--neighbours N] [--shape small]` completes a phantom with the
command line as a user would, on the processor, alone and beside processes that only count: in turn with threads that
spin while they wait, spin briefly, and sleep. Seconds are from start to exit, the least of the rounds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.core.config import WEIGHTS_DIR
from app.core.startup import SPIN_COUNT
from app.data.phantom import write_phantom
from app.registry.manifest import read_manifest
from benchmarks._common import machine, phantom_of

#: Settings of OpenMP: the middle one is that of the command.
POLICIES = {
    "spinning": {"OMP_WAIT_POLICY": "active"},
    "spinning briefly": {"GOMP_SPINCOUNT": SPIN_COUNT},
    "sleeping": {"OMP_WAIT_POLICY": "passive"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=read_manifest(WEIGHTS_DIR).default, help="default: the manifest's")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--neighbours", type=int, default=max((os.cpu_count() or 2) // 2, 1), help="default: half the cores"
    )
    parser.add_argument("--shape", choices=["brats", "small"], default="brats")
    options = parser.parse_args()
    least: dict[tuple[int, str], float] = {}
    with tempfile.TemporaryDirectory() as name:
        write_phantom(phantom_of(options.shape), Path(name) / "in", "s", leave_out=("t2f",))
        for _ in range(options.rounds):
            for neighbours in (0, options.neighbours):
                for policy, settings in POLICIES.items():
                    with _counting(neighbours), tempfile.TemporaryDirectory() as out:
                        seconds = _seconds(Path(name) / "in", Path(out), options.model, settings)
                    least[neighbours, policy] = min(seconds, least.get((neighbours, policy), seconds))
    print("| neighbours | " + " | ".join(f"{policy}, s" for policy in POLICIES) + " |")
    print("|---" * (1 + len(POLICIES)) + "|")
    for neighbours in (0, options.neighbours):
        print(f"| {neighbours} | " + " | ".join(f"{least[neighbours, policy]:.1f}" for policy in POLICIES) + " |")
    print(f"model {options.model}; {machine()}")


def _seconds(source: Path, output: Path, model: str, settings: dict[str, str]) -> float:
    """One run of the command line."""
    command = [sys.executable, "-m", "app", "--input", source, "--output", output, "--model", model]
    before = time.perf_counter()
    subprocess.run(
        [*map(str, command), "--device", "cpu", "--on-error", "stop"],
        env={**os.environ, **settings},
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - before


@contextmanager
def _counting(count: int) -> Iterator[None]:
    """So many processes that each want a core."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
