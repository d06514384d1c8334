"""Time and memory against the number of subjects, of everything that a run does beside the network.

`python -m benchmarks scale [--subjects 100,1000,10000] [--no-run]` links copies of a tiny phantom and runs, each in a
process of its own: `scan` finds the subjects; `check` is the command; `run` completes all of them by the voxel-wise
regression, and so scans, records and reports; `records` reads a run's record, and writes it and its page anew
(`merge-records`). Seconds are of the processor, the program's start included: what other work the machine does counts
little.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.data.phantom import make_phantom, write_phantom
from benchmarks._common import machine

STAGES = ("scan", "check", "run", "records")
_SCAN = "import sys; from pathlib import Path; from app.data.discovery import scan; scan(Path(sys.argv[1]))"
_LAUNCHER = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
_TINY = (32, 32, 32)


@dataclass(frozen=True)
class Cost:
    """What one command took: seconds of the processor, and MiB at most."""

    seconds: float
    peak: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", default="100,1000,10000", help="numbers of subjects, separated by commas")
    parser.add_argument("--no-run", action="store_true", help="scan and check alone")
    options = parser.parse_args()
    stages = STAGES[:2] if options.no_run else STAGES
    columns = (*(f"{stage}, s" for stage in stages), *(f"{stage}, MiB" for stage in stages), "record, MB", "page, MB")
    print("| subjects | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for count in map(int, options.subjects.split(",")):
        with tempfile.TemporaryDirectory() as name:
            write_subjects(Path(name) / "in", count)
            costs = [measure(stage, Path(name)) for stage in stages]
            sizes = [_megabytes(Path(name) / "report" / f"tetrad-run.{kind}") for kind in ("json", "html")]
        cells = [*(f"{c.seconds:.1f}" for c in costs), *(f"{c.peak:.0f}" for c in costs), *sizes]
        print(f"| {count} | " + " | ".join(cells) + " |", flush=True)
    print(machine())


def write_subjects(folder: Path, count: int) -> None:
    """Link copies of a tiny phantom; each lacks one sequence, in turns."""
    first = folder.parent / "first"
    write_phantom(make_phantom(_TINY), first, "s")
    for number in range(count):
        subject = folder / f"s{number:06}"
        subject.mkdir(parents=True)
        for modality in MODALITIES:
            if modality != MODALITIES[number % len(MODALITIES)]:
                os.link(first / "s" / f"s-{modality}.nii.gz", subject / f"{subject.name}-{modality}.nii.gz")


def measure(stage: str, place: Path) -> Cost:
    """Run one stage on the subjects of `place/in`.

    Raises:
        UsageError: it failed.
    """
    report = place / "report"
    if stage == "records":
        (report / "tetrad-run.json").rename(report / "tetrad-run-part0of1.json")
    app = (sys.executable, "-m", "app")
    commands: dict[str, Sequence[str | Path]] = {
        "scan": (sys.executable, "-c", _SCAN, place / "in"),
        "check": (*app, "check", "--input", place / "in"),
        "run": (*app, "synthesize", "--input", place / "in", "--output", place / "out", "--report-dir", report,
                "--model", "regression", "--device", "cpu"),
        "records": (*app, "merge-records", report),
    }  # fmt: skip
    return _cost_of(list(map(str, commands[stage])))


def _cost_of(command: Sequence[str]) -> Cost:
    # A process begins with the memory of the one that starts it: here a small one.
    done = subprocess.run([sys.executable, "-c", _LAUNCHER, *command], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise UsageError(f"{' '.join(command)} failed with exit code {done.returncode}; run it by hand.")
    seconds, peak = map(float, done.stdout.split())
    return Cost(seconds, peak / 1024)


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f}" if path.is_file() else "-"


if __name__ == "__main__":
    main()
