"""Seconds and memory of this checkout beside another one, on the same exams in one run.

`python -m benchmarks compare --other DIR [--rounds 3] [--subjects 1] [--shape small] [--input DIR] [--model NAME]
[--precision fp32,auto] [--device cpu]` runs the command line in each checkout in turn; the order changes from round to
round (A B, B A, ...). The exams are phantoms of BraTS size that lack T2-FLAIR, or those of `--input`. Every measurement
is a process of its own, with this Python. Seconds a subject count from the first file opened to the last one written;
the whole and the processor's count from start to exit. Ratios are this one by the other: their median over the rounds,
with the least and the most. The last column says whether both wrote the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from app.cli.argument_types import positive
from app.core.config import PRECISIONS
from app.core.constants import Modality
from app.core.errors import UsageError
from app.data.phantom import write_phantom
from app.registry.manifest import sha256_of
from benchmarks._common import choose, machine, phantom_of

HERE = Path(__file__).resolve().parents[1]
TARGET: Modality = "t2f"
#: What is compared: its heading in the table, and how its numbers are written.
QUANTITIES = {
    "subject": ("s a subject", ".2f"),
    "whole": ("s, start to exit", ".2f"),
    "processor": ("processor-s", ".2f"),
    "peak": ("peak, MiB", ".0f"),
}


@dataclass(frozen=True)
class Measured:
    """One run: seconds a subject, seconds from start to exit, processor-seconds, peak memory in MiB."""

    subject: float
    whole: float
    processor: float
    peak: float


@dataclass(frozen=True)
class Pair:
    """Both checkouts in one round, and whether their outputs are the same, byte for byte."""

    ours: Measured
    other: Measured
    same: bool

    def ratio(self, quantity: str) -> float:
        """Divide ours by the other's."""
        return float(getattr(self.ours, quantity) / getattr(self.other, quantity))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--other", type=Path, required=True, metavar="DIR", help="root of another checkout")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--subjects", type=positive, default=1, help="phantoms in a run")
    parser.add_argument("--shape", choices=["brats", "small"], default="brats")
    parser.add_argument("--input", type=Path, metavar="DIR", help="exams to complete instead of phantoms")
    parser.add_argument("--model", help="default: each checkout's own")
    parser.add_argument("--precision", default="fp32,auto", help="one or several, separated by commas")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    precisions = choose(PRECISIONS, options.precision, parser)
    other = options.other.resolve()
    if not (other / "app" / "__main__.py").is_file():
        raise UsageError(f"{other} is no checkout of Tetrad: it has no app/__main__.py.")
    pairs: dict[str, list[Pair]] = {precision: [] for precision in precisions}
    with tempfile.TemporaryDirectory() as name:
        source = options.input.resolve() if options.input else _phantoms(Path(name) / "in", options)
        for number in range(options.rounds):
            for precision in precisions:
                pairs[precision].append(_round(number, source, other, precision, options))
                print(f"round {number + 1}, {precision}: {pairs[precision][-1]}", file=sys.stderr, flush=True)
    _print(pairs)
    print(f"this: {HERE}; other: {other}; model {options.model or 'default'} on {options.device}; {machine()}")
    if options.json:
        form = {precision: [asdict(pair) for pair in rows] for precision, rows in pairs.items()}
        options.json.write_text(json.dumps(form, indent=1) + "\n")


def _phantoms(folder: Path, options: argparse.Namespace) -> Path:
    phantom = phantom_of(options.shape)
    for number in range(options.subjects):
        write_phantom(phantom, folder, f"s{number:03}", leave_out=(TARGET,))
    return folder


def _round(number: int, source: Path, other: Path, precision: str, options: argparse.Namespace) -> Pair:
    """Measure both checkouts, this one first in every second round."""
    results: dict[Path, Measured] = {}
    with tempfile.TemporaryDirectory() as name:
        # A checkout may be compared with itself: one folder of outputs for each place in the pair.
        places = [(HERE, Path(name) / "ours"), (other, Path(name) / "other")]
        for checkout, out in places if number % 2 == 0 else places[::-1]:
            out.mkdir()
            results[out] = _measure(checkout, source, out, precision, options)
        ours, others = (out for _, out in places)
        return Pair(results[ours], results[others], _digests(ours / "out") == _digests(others / "out"))


def _measure(checkout: Path, source: Path, folder: Path, precision: str, options: argparse.Namespace) -> Measured:
    trace = folder / "trace.json"
    command: list[str | Path] = [
        sys.executable, "-m", "app", "--input", source, "--output", folder / "out", "--device", options.device,
        "--precision", precision, "--profile-run", trace, "--on-error", "stop",
        *(["--model", options.model] if options.model else []),
    ]  # fmt: skip
    # Neither the modules nor the weights of one checkout may be taken for the other's.
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "TETRAD_WEIGHTS"}}
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=checkout, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    whole = time.monotonic() - began
    if process.returncode:
        raise UsageError(f"{checkout} failed with status {process.returncode}: {said.strip()[-2000:]}")
    events = json.loads(trace.read_text())["traceEvents"]
    spent = (max(e["ts"] + e["dur"] for e in events) - min(e["ts"] for e in events)) / 1e6
    processor = usage.ru_utime + usage.ru_stime
    return Measured(spent / len(list((folder / "out").iterdir())), whole, processor, usage.ru_maxrss / 1024)


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: sha256_of(p) for p in folder.iterdir()}


def _print(pairs: dict[str, list[Pair]]) -> None:
    print("| precision | quantity | this | other | this / other | least to most | same bytes |")
    print("|---|---|---|---|---|---|---|")
    for precision, rows in pairs.items():
        same = "yes" if all(pair.same for pair in rows) else "no"
        for quantity, (name, form) in QUANTITIES.items():
            ours, others = (statistics.median(getattr(m, quantity) for m in ms) for ms in _columns(rows))
            ratios = sorted(pair.ratio(quantity) for pair in rows)
            print(
                f"| {precision} | {name} | {ours:{form}} | {others:{form}} | {statistics.median(ratios):.3f} "
                f"| {ratios[0]:.3f} to {ratios[-1]:.3f} | {same} |"
            )


def _columns(rows: list[Pair]) -> tuple[list[Measured], list[Measured]]:
    return [pair.ours for pair in rows], [pair.other for pair in rows]


if __name__ == "__main__":
    main()
