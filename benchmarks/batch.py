"""Whether a batch costs what its subjects cost: time, memory and the network's share, for few and for many of them.

`python -m benchmarks batch [--subjects 12,48] [--model NAME] [--device cpu] [--jobs N] [--shape small]` runs the
command line as a user would, on copies of a phantom of BraTS size. Seconds count from the first file opened to the last
one written; the network's share is of the time from the first subject decoded to the last one computed; the reading
limit is what the threads that read need if nothing ever waits; the first output counts from the start of the program.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from app.core.config import WEIGHTS_DIR
from app.data.phantom import write_phantom
from app.registry.manifest import read_manifest
from benchmarks._common import machine, phantom_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", default="12,48", help="numbers of subjects, separated by commas")
    parser.add_argument("--model", default=read_manifest(WEIGHTS_DIR).default, help="default: the manifest's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, help="threads that read; default: as the command line chooses")
    parser.add_argument("--shape", choices=["brats", "small"], default="brats")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        first = Path(name) / "first"
        write_phantom(phantom_of(options.shape), first, "s", leave_out=("t2f",))
        for count in map(int, options.subjects.split(",")):
            folder = Path(name) / str(count)
            for number in range(count):
                subject = folder / "in" / f"s{number:03}"
                subject.mkdir(parents=True)
                for file in (first / "s").iterdir():
                    os.link(file, subject / file.name.replace("s-", f"{subject.name}-"))
            rows.append((count, _measure(folder, options)))
    columns = ("subjects", "s", "s a subject", "times the first row", "network's share", "of the reading limit",
               "first output, s", "peak, MiB")  # fmt: skip
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for count, row in rows:
        print(
            f"| {count} | {row.seconds:.1f} | {row.seconds / count:.2f} | {row.seconds / rows[0][1].seconds:.2f} "
            f"| {row.network:.0%} | {row.reading:.0%} | {row.first:.1f} | {row.peak:.0f} |"
        )
    print(f"model {options.model} on {options.device}; {machine()}")


@dataclass(frozen=True)
class Row:
    """One run: seconds, shares of them (0 to 1), seconds to the first output, peak memory in MiB."""

    seconds: float
    network: float
    reading: float
    first: float
    peak: float


def _measure(folder: Path, options: argparse.Namespace) -> Row:
    trace = folder / "trace.json"
    command: list[str | Path] = [
        sys.executable, "-m", "app", "--input", folder / "in", "--output", folder / "out", "--model", options.model,
        "--device", options.device, "--profile-run", trace, "--on-error", "skip",
        *(["--jobs", str(options.jobs)] if options.jobs else []),
    ]  # fmt: skip
    started = time.time()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(map(str, command))} failed with status {status}.")
    events = json.loads(trace.read_text())["traceEvents"]
    spans = {s: [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == s] for s in ("read", "network", "write")}
    began, ended = min(b for b, _ in spans["read"]), max(e for _, e in spans["write"])
    busy = {s: sum(e - b for b, e in spans[s]) for s in spans}
    readers = len({(e["pid"], e["tid"]) for e in events if e["name"] == "read"})
    return Row(
        seconds=(ended - began) / 1e6,
        network=busy["network"] / (max(e for _, e in spans["network"]) - min(e for _, e in spans["read"])),
        reading=busy["read"] / readers / (ended - began),
        first=min(p.stat().st_mtime for p in (folder / "out").iterdir()) - started,
        peak=usage.ru_maxrss / 1024,
    )


if __name__ == "__main__":
    main()
