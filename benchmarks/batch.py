"""Whether a batch costs what its subjects cost: time, memory and the network's share, for few and for many of them.

`python -m benchmarks batch [--subjects 12,48] [--model NAME] [--shape small]` runs the command line as a user would, on
copies of a phantom of BraTS size. Seconds count from the first file opened to the last one written; the network's share
is of the time from the first subject decoded to the last one computed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from app.config import WEIGHTS_DIR
from app.phantom import make_phantom, write_phantom
from app.weights import read_manifest
from benchmarks._common import brats_phantom, machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", default="12,48", help="numbers of subjects, separated by commas")
    parser.add_argument("--model", default=read_manifest(WEIGHTS_DIR).default, help="default: the manifest's")
    parser.add_argument("--shape", choices=["brats", "small"], default="brats")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        first = Path(name) / "first"
        phantom = make_phantom((80, 96, 72)) if options.shape == "small" else brats_phantom()
        write_phantom(phantom, first, "s", leave_out=("t2f",))
        for count in map(int, options.subjects.split(",")):
            folder = Path(name) / str(count)
            for number in range(count):
                subject = folder / "in" / f"s{number:03}"
                subject.mkdir(parents=True)
                for file in (first / "s").iterdir():
                    os.link(file, subject / file.name.replace("s-", f"{subject.name}-"))
            rows.append((count, *_measure(folder, options.model)))
    print(
        "| subjects | s | s a subject | times the first row | network's share | peak, MiB |\n|---|---|---|---|---|---|"
    )
    for count, seconds, share, peak in rows:
        ratio = seconds / rows[0][1]
        print(f"| {count} | {seconds:.1f} | {seconds / count:.2f} | {ratio:.2f} | {share:.0%} | {peak:.0f} |")
    print(f"model {options.model}; {machine()}")


def _measure(folder: Path, model: str) -> tuple[float, float, float]:
    """Seconds, the network's share, and peak memory in MiB."""
    trace = folder / "trace.json"
    command: list[str | Path] = [
        sys.executable, "-m", "app", "--input", folder / "in", "--output", folder / "out", "--model", model,
        "--device", "cpu", "--profile-run", trace, "--on-error", "skip",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(map(str, command))} failed with status {status}.")
    events = json.loads(trace.read_text())["traceEvents"]
    spans = {s: [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == s] for s in ("read", "network", "write")}
    began, ended = min(b for b, _ in spans["read"]), max(e for _, e in spans["write"])
    busy = sum(e - b for b, e in spans["network"])
    share = busy / (max(e for _, e in spans["network"]) - min(e for _, e in spans["read"]))
    return (ended - began) / 1e6, share, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
