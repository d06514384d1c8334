"""Plan of a large run: how long 10,000 to a million exams take on a fleet, and what holds it back.

`python -m benchmarks capacity [--exams 10000,100000,1000000] [--gpus 1,4,16,64] [--cores 1000] [--parts]` simulates the
fleet exam by exam: reading from the shared storage, decoding, the network, encoding, writing. Before it one process
scans, after it one writes the report. With `--parts` every worker scans the whole input, as the tasks of an array do.
The bottleneck is the figure whose halving shortens the run most. Every figure of the table `FIGURES` is an option.

`python -m benchmarks capacity --measure [--model NAME]` measures this machine's seconds of the processor per exam.
"""

from __future__ import annotations

import argparse
import heapq
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from app.batch.processors.opening import open_processor
from app.core.config import WEIGHTS_DIR, ModelOptions, RunConfig, RuntimeOptions
from app.data.discovery import scan
from app.data.phantom import write_phantom
from app.registry.manifest import read_manifest
from benchmarks._common import machine, phantom_of


@dataclass(frozen=True)
class Figure:
    """One input of the plan: its value, and where it comes from."""

    value: float
    unit: str
    origin: str


_SCALE, _MEASURE, _ASSUMED = "benchmarks scale", "benchmarks capacity --measure", "assumed"
FIGURES: Final[Mapping[str, Figure]] = {
    "scan": Figure(0.0015, "core-s an exam to find it and read its headers", _SCALE),
    "opens": Figure(12, "files opened an exam by the scan", "strace -fc -e openat tetrad check"),
    "decode": Figure(1.1, "core-s an exam to decode its inputs", _MEASURE),
    "network-cores": Figure(12.5, "core-s an exam in the network, without a GPU", _MEASURE),
    "network-gpu": Figure(0.5, "GPU-s an exam in the network", _ASSUMED),
    "encode": Figure(0.2, "core-s an exam to encode its output", _MEASURE),
    "report": Figure(0.0015, "core-s an exam for record and page", _SCALE),
    "pictures": Figure(47, "core-s for the pictures of a page", _SCALE),
    "input": Figure(6.1, "MB an exam to read", "files of BraTS size"),
    "output": Figure(2.0, "MB an exam to write", "files of BraTS size"),
    "start": Figure(12, "s to start a worker and load its model", "benchmarks batch"),
    "storage-read": Figure(1000, "MB/s of the shared storage", _ASSUMED),
    "storage-write": Figure(500, "MB/s of the shared storage", _ASSUMED),
    "storage-opens": Figure(20_000, "files/s of the shared storage", _ASSUMED),
    "cores-beside-gpu": Figure(8, "cores for each GPU", _ASSUMED),
    "cores-of-worker": Figure(4, "cores of a worker without a GPU", "the default of --worker-cores"),
}
#: The figures whose halving is tried, and what each is called as a bottleneck.
BOTTLENECKS: Final = {
    "scan": "scan", "opens": "scan (files opened)", "decode": "decoding", "network-cores": "network",
    "network-gpu": "network", "encode": "encoding", "report": "report", "pictures": "report", "input": "storage, read",
    "output": "storage, write", "start": "start",
}  # fmt: skip
#: Exams that are simulated one by one; more go on at the rate of the middle.
_MOST_SIMULATED: Final = 10_000


@dataclass(frozen=True)
class Fleet:
    """So many GPUs, or so many cores without one."""

    gpus: int = 0
    cores: int = 0

    def __str__(self) -> str:
        return f"{self.gpus} GPU" if self.gpus else f"{self.cores} cores"

    def workers(self, figures: Mapping[str, float]) -> int:
        """Count the workers: one a GPU, or one per few cores."""
        return self.gpus or max(1, self.cores // int(figures["cores-of-worker"]))


@dataclass(frozen=True)
class Plan:
    """What the simulation says: seconds of each phase, and the network's busy share of the middle one (0 to 1)."""

    scan: float
    work: float
    report: float
    busy: float

    @property
    def seconds(self) -> float:
        return self.scan + self.work + self.report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exams", default="10000,100000,1000000", help="numbers of exams, separated by commas")
    parser.add_argument("--gpus", default="1,4,16,64", help="fleets of so many GPUs; empty for none")
    parser.add_argument("--cores", default="1000", help="fleets of so many cores without a GPU; empty for none")
    parser.add_argument("--parts", action="store_true", help="every worker scans the whole input")
    parser.add_argument("--measure", action="store_true", help="measure this machine instead")
    parser.add_argument("--model", default=read_manifest(WEIGHTS_DIR).default, help="with --measure")
    parser.add_argument("--shape", choices=["brats", "small"], default="brats", help="with --measure")
    for name, figure in FIGURES.items():
        parser.add_argument(f"--{name}", type=float, default=figure.value, help=f"{figure.unit} ({figure.origin})")
    options = vars(parser.parse_args())
    if options["measure"]:
        _print_measured(options["model"], options["shape"])
        return
    figures = {name: options[name.replace("-", "_")] for name in FIGURES}
    fleets = [
        *(Fleet(gpus=n) for n in _numbers(options["gpus"])),
        *(Fleet(cores=n) for n in _numbers(options["cores"])),
    ]
    _print_plans(_numbers(options["exams"]), fleets, figures, options["parts"])
    _print_figures(figures)


def simulate(exams: int, fleet: Fleet, figures: Mapping[str, float], parts: bool = False) -> Plan:
    """Simulate a run.

    Args:
        figures: one per name of `FIGURES`.
        parts: whether every worker scans the whole input.
    """
    workers = min(fleet.workers(figures), exams)
    scans = workers if parts else 1
    scanned = exams * max(figures["scan"], scans * figures["opens"] / figures["storage-opens"])
    ends = _ends(min(exams, _MOST_SIMULATED), fleet, workers, figures)
    work = figures["start"] + ends[-1]
    if exams > len(ends):
        work += (exams - len(ends)) * _steady_seconds(ends, workers)
    busy = exams * _network_seconds(fleet, figures) / (workers * work)
    return Plan(scanned, work, figures["pictures"] + exams * figures["report"], busy)


def bottleneck(exams: int, fleet: Fleet, figures: Mapping[str, float], parts: bool = False) -> tuple[str, float]:
    """Find the figure whose halving shortens the run most: its name, and by which share (0 to 1)."""
    whole = simulate(exams, fleet, figures, parts).seconds
    gains = {
        name: 1 - simulate(exams, fleet, {**figures, name: figures[name] / 2}, parts).seconds / whole
        for name in BOTTLENECKS
    }
    best = max(gains, key=gains.__getitem__)
    return BOTTLENECKS[best], gains[best]


def _ends(exams: int, fleet: Fleet, workers: int, figures: Mapping[str, float]) -> list[float]:
    """Give the second at which each exam is written, sorted, from when the workers are ready."""
    read, write = figures["input"] / figures["storage-read"], figures["output"] / figures["storage-write"]
    network = _network_seconds(fleet, figures)
    cores = [[0.0] * _codec_cores(fleet, figures) for _ in range(workers)]
    network_free, read_free, write_free = [0.0] * workers, 0.0, 0.0
    # A worker takes a further exam as soon as one of its cores can decode it, and few enough wait for the network.
    turns = [(0.0, worker) for worker in range(workers)]
    encoding: list[tuple[float, int]] = []
    ends: list[float] = []

    def encode_until(moment: float) -> Iterator[float]:
        """Encode and write what has left the network by then, in its order."""
        nonlocal write_free
        while encoding and encoding[0][0] <= moment:
            computed, worker = heapq.heappop(encoding)
            encoded = max(computed, heapq.heappop(cores[worker])) + figures["encode"]
            heapq.heappush(cores[worker], encoded)
            write_free = max(encoded, write_free) + write
            yield write_free

    for _ in range(exams):
        turn, worker = heapq.heappop(turns)
        ends += encode_until(turn)
        read_free = max(turn, read_free) + read
        decoded = max(read_free, heapq.heappop(cores[worker])) + figures["decode"]
        heapq.heappush(cores[worker], decoded)
        begin = max(decoded, network_free[worker])
        network_free[worker] = begin + network
        heapq.heappush(encoding, (begin + network, worker))
        heapq.heappush(turns, (max(begin - figures["decode"], read_free, cores[worker][0]), worker))
    return sorted([*ends, *encode_until(float("inf"))])


def _steady_seconds(ends: Sequence[float], workers: int) -> float:
    """Give the seconds an exam in the middle of a run, over whole rounds of all workers."""
    first = len(ends) // 4
    rounds = max(1, len(ends) // 2 // workers)
    last = min(first + rounds * workers, len(ends) - 1)
    return (ends[last] - ends[first]) / (last - first)


def _network_seconds(fleet: Fleet, figures: Mapping[str, float]) -> float:
    if fleet.gpus:
        return figures["network-gpu"]
    return figures["network-cores"] / min(fleet.cores, figures["cores-of-worker"])


def _codec_cores(fleet: Fleet, figures: Mapping[str, float]) -> int:
    """Count the cores that decode and encode; without a GPU one does beside those that the network has."""
    return int(figures["cores-beside-gpu"]) if fleet.gpus else 1


def measure(model: str, shape: str = "brats") -> dict[str, float]:
    """Measure seconds of the processor of each stage of one exam on this machine, the second time."""
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        source, output = Path(name) / "in", Path(name) / "out"
        output.mkdir()
        write_phantom(phantom_of(shape), source, "s", leave_out=("t2f",))
        config = RunConfig(input_dir=source, output_dir=output, overwrite=True, runtime=RuntimeOptions(device="cpu"))
        processor = open_processor(replace(config, model=ModelOptions(model=model)))
        for _ in range(2):
            case = scan(source).cases[0]
            began = time.process_time()
            loaded = processor.read(case)
            read = time.process_time()
            computed = processor.compute(loaded)
            done = time.process_time()
            processor.write(computed)
            seconds = {"decode": read - began, "network-cores": done - read, "encode": time.process_time() - done}
    return seconds


def _print_measured(model: str, shape: str) -> None:
    for name, seconds in measure(model, shape).items():
        print(f"--{name} {seconds:.2f}")
    print(f"model {model}; {machine()}")


def _print_plans(exams: Sequence[int], fleets: Sequence[Fleet], figures: Mapping[str, float], parts: bool) -> None:
    columns = ("exams", "fleet", "hours", "scan, h", "report, h", "network busy", "bottleneck", "half of it saves")
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for count in exams:
        for fleet in fleets:
            plan, (name, gain) = simulate(count, fleet, figures, parts), bottleneck(count, fleet, figures, parts)
            hours = " | ".join(f"{s / 3600:.2f}" for s in (plan.seconds, plan.scan, plan.report))
            print(f"| {count} | {fleet} | {hours} | {plan.busy:.0%} | {name} | {gain:.0%} |")


def _print_figures(figures: Mapping[str, float]) -> None:
    print("\n| figure | value | unit | from |")
    print("|---|---|---|---|")
    for name, figure in FIGURES.items():
        origin = figure.origin if figures[name] == figure.value else "given"
        print(f"| {name} | {figures[name]:g} | {figure.unit} | {origin} |")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


if __name__ == "__main__":
    main()
