"""What each step away from the released peer's way of running saves, end to end from gzip to gzip, on the processor.

`python -m benchmarks speed [--repeats 2] [--subjects 1] [--shape small] [--json FILE]`. The first variant does what the
released 2025 container does, built from our own modules: full width, all sagittal slices at 240 x 240 in batches of 40,
five encoders, float32, one subject loaded, computed and saved after the other. Each variant adds one step to the one
before. Every measurement is a fresh process with random weights on phantoms; variants are measured in turn (A B C,
A B C), those of more than a minute once, and medians reported. Seconds count from the first file opened to the last one
written, without starting Python and loading weights.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from app.batch.run import run
from app.core.config import WEIGHTS_DIR, ModelOptions, RunConfig, RuntimeOptions
from app.core.constants import MODALITIES, Modality, View
from app.core.startup import TUNABLES
from app.data.nifti_reader import load_volume
from app.data.nifti_writer import save_image
from app.data.phantom import write_phantom
from app.inference.backends import TorchBackend
from app.inference.device import CPU_BATCH, Runtime
from app.inference.models import NetworkModel
from app.inference.pipeline import finish, prepare
from app.inference.slicewise.slice_predictor import SlicePredictor
from app.inference.slicewise.view_fusion import FusionOptions, TtaPass
from app.networks.architectures import HF_GAN_PRESETS, HfGanConfig
from app.networks.hf_gan import HfGan
from app.preprocessing.normalization import Normalization
from app.preprocessing.slices import Canvas, Window, place_window
from app.preprocessing.target_intensity import IntensityPredictor
from app.registry.checkpoints import save_network
from app.registry.identity import Identity
from app.registry.manifest import read_manifest
from app.registry.spec import GeneratorSpec
from benchmarks._common import choose, machine, phantom_of

#: A variant that takes more seconds than this is measured once.
ONCE = 60.0
TARGET: Modality = "t2f"
VIEW: View = "sagittal"
INPUTS = tuple(m for m in MODALITIES if m != TARGET)


@dataclass(frozen=True)
class Variant:
    """One way of running; the defaults are the released peer's."""

    preset: str = "full"
    all_encoders: bool = True
    every_slice: bool = True
    crop: bool = False
    precision: str = "fp32"
    tuned: bool = False
    batch: int = 40
    overlap: bool = False


def variants() -> dict[str, Variant]:
    """The reference, then one step more each."""
    steps: dict[str, dict[str, Any]] = {
        "missing encoder dropped": {"all_encoders": False},
        "empty slices skipped": {"every_slice": False},
        "brain-centred canvas": {"crop": True},
        "bf16": {"precision": "bf16"},
        "memory kept in huge pages": {"tuned": True},
        f"batch {CPU_BATCH}": {"batch": CPU_BATCH},
        "overlapped reading and writing": {"overlap": True},
        "half width": {"preset": "half"},
        "compact width": {"preset": "compact"},
    }
    found = {"reference": Variant()}
    current = Variant()
    for name, step in steps.items():
        current = replace(current, **step)
        found[name] = current
    return found


class _AllEncoders(nn.Module):
    """Runs the missing sequence's encoder too, as the released code does."""

    def __init__(self, network: HfGan) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: torch.Tensor, members: tuple[int, ...]) -> torch.Tensor:
        made: torch.Tensor = self.network(*inputs)
        return made


def _canvas(variant: Variant, small: bool) -> Canvas:
    if small:
        return Canvas({VIEW: (96, 96)}, "brain" if variant.crop else "volume")
    return Canvas({VIEW: (176, 144)}) if variant.crop else Canvas({VIEW: (240, 240)}, "volume")


def measure(variant: Variant, folder: Path, small: bool) -> dict[str, float]:
    """Seconds, processor-seconds and peak memory of one variant over all subjects of `folder`."""
    torch.manual_seed(0)
    network = HfGan(HfGanConfig(width=HF_GAN_PRESETS[variant.preset]))
    canvas, scheme = _canvas(variant, small), Normalization("volume", background=-1.0)
    spec = GeneratorSpec(architecture=network.config, normalization=scheme, canvas=canvas, views=(VIEW,))
    intensity = read_manifest(WEIGHTS_DIR).entry("regression").path_of("intensity").read_bytes()
    subjects = sorted(p for p in (folder / "in").iterdir())
    out = folder / "out"
    out.mkdir(exist_ok=True)
    if variant.overlap:
        save_network(folder / "w", variant.preset, spec, network.state_dict(), intensity=intensity)
        config = RunConfig(
            folder / "in", out, RuntimeOptions("cpu", precision="bf16"), ModelOptions(folder / "w", variant.preset),
            overwrite=True, on_error="stop", profile_file=folder / "trace.json",
        )  # fmt: skip
        before = _clock()
        run(config)
        spent = _since(before)
        # Loading is no part of a subject; the trace knows when the first one was begun.
        events = json.loads((folder / "trace.json").read_text())["traceEvents"]
        begun, ended = min(e["ts"] for e in events), max(e["ts"] + e["dur"] for e in events)
        return {**spent, "seconds": (ended - begun) / 1e6, "subjects": len(subjects)}
    run_as: Any = _AllEncoders(network) if variant.all_encoders else network
    runtime = Runtime("torch", "cpu", variant.precision, variant.batch, "benchmark")  # type: ignore[arg-type]
    predictor = IntensityPredictor.from_json(json.loads(intensity))
    slices = SlicePredictor(TorchBackend(run_as, runtime), variant.batch)
    model = NetworkModel(Identity("benchmark", "0" * 64), spec, predictor, slices, runtime)
    before = _clock()
    for subject in subjects:
        _one(subject, out, model, variant)
    return {**_since(before), "subjects": len(subjects)}


def _one(subject: Path, out: Path, model: NetworkModel, variant: Variant) -> None:
    volumes = {m: load_volume(subject / f"{subject.name}-{m}.nii.gz") for m in INPUTS}
    prepared = prepare(volumes, model)
    shape = prepared.foreground.shape
    window = place_window(prepared.foreground, VIEW, model.spec.canvas)
    if variant.every_slice:
        window = Window(VIEW, window.start, window.size, tuple(range(shape[0])))
    predicted = model.predictor.predict(prepared, TARGET, [TtaPass((window,))], FusionOptions())
    save_image(finish(predicted.volume, prepared, TARGET, "t2w", model), out / f"{subject.name}-{TARGET}.nii.gz")


def _clock() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def _since(before: tuple[float, float]) -> dict[str, float]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "seconds": time.monotonic() - before[0],
        "processor_seconds": time.process_time() - before[1],
        "peak_mib": peak,
    }


def convolution_peak(seconds: float = 3.0) -> float:
    """The best rate, in GFLOP/s, of a plain bf16 3 x 3 convolution of 256 channels on this processor."""
    best = 0.0
    for size in (36, 72):
        image = torch.randn(4, 256, size, size, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        weight = torch.randn(256, 256, 3, 3, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            spent = _seconds_of(partial(_convolve, image, weight), seconds)
        best = max(best, 2.0 * 4 * 256 * 256 * 9 * size * size / spent / 1e9)
    return best


def _convolve(image: torch.Tensor, weight: torch.Tensor) -> None:
    F.conv2d(image, weight, padding=1)


@dataclass(frozen=True)
class Rates:
    """GFLOP/s of a generator in bf16, in batches as inference runs it.

    Attributes:
        network: all of it.
        convolutions: its convolutions alone, one after the other, as if all between them took no time.
    """

    network: float
    convolutions: float


class _Convolutions(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the convolutions that are run, with what they are run on."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default:
            self.calls.append(args)
        return func(*args, **(kwargs or {}))


def network_rates(preset: str, seconds: float = 5.0) -> Rates:
    """How fast a generator runs here, and how fast it could if it were nothing but torch's convolutions."""
    network = HfGan(HfGanConfig(width=HF_GAN_PRESETS[preset])).eval()
    images, present = torch.zeros(CPU_BATCH, 4, 176, 144), torch.ones(CPU_BATCH, 4)
    present[:, MODALITIES.index(TARGET)] = 0
    members = tuple(i for i, m in enumerate(MODALITIES) if m != TARGET)
    codes = torch.full((CPU_BATCH,), MODALITIES.index(TARGET)), torch.ones(CPU_BATCH, dtype=torch.long)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network(images, present, *codes, members=members)
    backend = TorchBackend(network, Runtime("torch", "cpu", "bf16", CPU_BATCH, "benchmark"))

    def whole() -> None:
        backend.run(images, members, int(codes[0][0]), codes[1], None)

    batch = images.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), _Convolutions() as noted:
        backend.network(batch, present, *codes, members=members)
    with FlopCounterMode(display=False) as convolved:
        _repeat(noted.calls)
    with torch.inference_mode():
        alone = convolved.get_total_flops() / _seconds_of(lambda: _repeat(noted.calls), seconds) / 1e9
    return Rates(counter.get_total_flops() / _seconds_of(whole, seconds) / 1e9, alone)


def _repeat(calls: list[tuple[Any, ...]]) -> None:
    for call in calls:
        torch.ops.aten.convolution.default(*call)


def _seconds_of(work: Callable[[], None], seconds: float) -> float:
    """Mean seconds of one piece of work, over so many; the first piece is not counted."""
    work()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        work()
        count += 1
    return (time.perf_counter() - began) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--subjects", type=int, default=1)
    parser.add_argument("--shape", choices=["brats", "small"], default="brats")
    parser.add_argument("--only", default="", help="names of variants, separated by commas")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    small = options.shape == "small"
    if options.child:
        print(json.dumps(measure(variants()[options.child], options.folder, small)))
        return
    chosen = choose(variants(), options.only, parser)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        phantom = phantom_of(options.shape)
        for number in range(options.subjects):
            write_phantom(phantom, folder / "in", f"s{number:03}", leave_out=(TARGET,))
        for _ in range(options.repeats):
            for variant in chosen:
                if results[variant] and results[variant][0]["seconds"] > ONCE:
                    continue
                command = [sys.executable, "-m", "benchmarks.speed", "--child", variant, "--folder", folder,
                           "--shape", options.shape]  # fmt: skip
                memory = {"GLIBC_TUNABLES": TUNABLES if variants()[variant].tuned else ""}
                done = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **memory}
                )
                results[variant].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{variant}: {results[variant][-1]['seconds']:.1f} s", file=sys.stderr, flush=True)
    _print(results)
    peak = convolution_peak()
    rates = {preset: network_rates(preset) for preset in HF_GAN_PRESETS}
    shares = ", ".join(
        f"{p} {r.network:.0f} GFLOP/s ({r.network / peak:.0%}; its convolutions alone {r.convolutions / peak:.0%})"
        for p, r in rates.items()
    )
    print(f"\nbf16 convolution peak {peak:.0f} GFLOP/s; {shares}")
    print(machine())
    if options.json:
        form = {
            "results": results,
            "variants": {n: asdict(variants()[n]) for n in chosen},
            "peak": peak,
            "rates": {preset: asdict(r) for preset, r in rates.items()},
        }
        options.json.write_text(json.dumps(form, indent=1) + "\n")


def _print(results: dict[str, list[dict[str, float]]]) -> None:
    print("| variant | s a subject | processor-s | peak, MiB | times faster than the first | than the one before |")
    print("|---|---|---|---|---|---|")
    medians = {
        name: {k: statistics.median(r[k] for r in runs) for k in runs[0]} for name, runs in results.items() if runs
    }
    first = before = next(iter(medians.values()))["seconds"]
    for name, m in medians.items():
        each = m["subjects"]
        print(
            f"| {name} | {m['seconds'] / each:.1f} | {m['processor_seconds'] / each:.1f} | {m['peak_mib']:.0f} "
            f"| {first / m['seconds']:.1f} | {before / m['seconds']:.2f} |"
        )
        before = m["seconds"]


if __name__ == "__main__":
    main()
