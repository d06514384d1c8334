"""What each `--quality` costs on a processor, and what it gives.

`python -m benchmarks cost [--input DIR] [--reference DIR] [--rounds N] [--only PROCESSOR] [--out DIR]` completes the
exams of a folder (a phantom if none is given) with the command line as a user would: on this processor as it is, and
as a plain one with AVX2 alone, which is emulated, in eight bits and in float32. Seconds are an exam's own, and from
start to exit; processor-seconds are of the whole command; of each the least of the rounds. With `--reference`, the
folder that the exams were taken from (`dropout --each`), SSIM in the brain stands beside them, and OUT/cost.png shows
both.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from app.core.atomic_io import save_bytes
from app.core.config import QUALITIES
from app.core.startup import SPIN_COUNT
from app.data.phantom import write_phantom
from app.evaluation.scoring import find_pairs, score_pair
from app.report.plotting import figure_class
from benchmarks._common import as_png, choose, machine, phantom_of

_AVX2: Final = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
#: Settings and options that make of this processor another.
PROCESSORS: Final[Mapping[str, tuple[Mapping[str, str], Sequence[str]]]] = {
    "this one": ({}, ()),
    "AVX2 alone": (_AVX2, ("--precision", "int8")),
    "AVX2 in fp32": (_AVX2, ("--precision", "fp32")),
}


@dataclass(frozen=True)
class Cost:
    """What a run cost.

    Attributes:
        exam: seconds an exam, from its reading to its writing.
        whole: seconds from start to exit.
        processor: processor-seconds of the whole run.
    """

    exam: float
    whole: float
    processor: float

    def least(self, other: Cost | None) -> Cost:
        """The lesser of each."""
        if other is None:
            return self
        return Cost(*(min(pair) for pair in zip(self._all, other._all, strict=True)))

    @property
    def _all(self) -> tuple[float, float, float]:
        return self.exam, self.whole, self.processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", type=Path, metavar="DIR", help="exams that lack a sequence; default: a phantom")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="the same exams, complete")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", default="", metavar="PROCESSOR,...", help=f"some of: {', '.join(PROCESSORS)}")
    parser.add_argument("--shape", choices=["brats", "small"], default="brats", help="of the phantom")
    parser.add_argument("--out", type=Path, metavar="DIR", help="gets cost.png; needs --reference")
    options = parser.parse_args()
    if options.out is not None and options.reference is None:
        parser.error("--out shows costs beside scores; give --reference, too")
    found: dict[tuple[str, str], Cost] = {}
    scores: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        source = options.input or Path(name) / "in"
        if options.input is None:
            write_phantom(phantom_of(options.shape), source, "s", leave_out=("t2f",))
        for processor in choose(PROCESSORS, options.only, parser):
            for quality in QUALITIES:
                for number in range(options.rounds):
                    out = Path(name) / f"{processor}-{quality}-{number}"
                    found[processor, quality] = _run(source, out, processor, quality).least(
                        found.get((processor, quality))
                    )
                if options.reference is not None:
                    scores.setdefault(quality, _score(out, options.reference))
    _print(found, scores)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        save_bytes(_plot(found, scores), options.out / "cost.png")


def _run(source: Path, out: Path, processor: str, quality: str) -> Cost:
    """One run of the command line."""
    settings, more = PROCESSORS[processor]
    command = [sys.executable, "-m", "app", "--input", source, "--output", out, "--quality", quality, *more]
    environment = {**os.environ, "GOMP_SPINCOUNT": SPIN_COUNT, **settings}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [*map(str, command), "--report-dir", str(_record_of(out)), "--device", "cpu", "--on-error", "stop"],
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    whole, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    exams = json.loads((_record_of(out) / "tetrad-run.json").read_text())["subjects"]
    used = (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime)
    return Cost(float(np.mean([exam["seconds"] for exam in exams])), whole, used)


def _record_of(out: Path) -> Path:
    return out.with_name(f"{out.name}-record")


def _score(out: Path, reference: Path) -> float:
    pairs, _ = find_pairs(out, reference)
    return float(np.mean([score_pair(pair).values["ssim_brain"] for pair in pairs]))


def _print(found: Mapping[tuple[str, str], Cost], scores: Mapping[str, float]) -> None:
    print("| processor | quality | an exam, s | start to exit, s | processor-s | SSIM in brain |")
    print("|---|---|---|---|---|---|")
    for (processor, quality), cost in found.items():
        score = f"{scores[quality]:.4f}" if quality in scores else ""
        print(f"| {processor} | {quality} | {cost.exam:.1f} | {cost.whole:.1f} | {cost.processor:.0f} | {score} |")
    print(machine())


def _plot(found: Mapping[tuple[str, str], Cost], scores: Mapping[str, float]) -> bytes:
    """Draws SSIM over seconds an exam as PNG."""
    figure = figure_class()(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for processor in dict.fromkeys(name for name, _ in found):
        costs = {quality: cost.exam for (name, quality), cost in found.items() if name == processor}
        axes.plot(list(costs.values()), [scores[q] for q in costs], marker="o", label=processor)
        for quality, seconds in costs.items():
            axes.annotate(quality, (seconds, scores[quality]), xytext=(4, 4), textcoords="offset points")
    axes.set(xlabel="seconds an exam", ylabel="SSIM in the brain")
    axes.set_xlim(left=0)
    axes.legend()
    return as_png(figure)


if __name__ == "__main__":
    main()
