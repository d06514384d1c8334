"""Describe this installation: models, devices, versions."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from app import __version__
from app.core.constants import MODALITIES
from app.inference.device import Machine
from app.networks.architectures import HfGanConfig
from app.registry.lineage import Lineage
from app.registry.manifest import Entry, read_manifest
from app.registry.spec import GeneratorSpec

_PACKAGES = ("torch", "onnxruntime-gpu", "onnxruntime", "nibabel", "numpy", "SimpleITK", "safetensors")


def describe(weights: Path) -> str:
    """Describe models, devices and packages in a few lines for a person.

    Raises:
        WeightsError: the manifest cannot be read.
    """
    manifest = read_manifest(weights)
    machine = Machine.probe()
    lines = [f"tetrad {__version__}, Python {platform.python_version()}", "", f"models in {weights}:"]
    for name, entry in manifest.entries.items():
        marks = [word for word, n in (("default", manifest.default), ("fallback", manifest.fallback)) if n == name]
        lines.append(f"  {name}: {_line(entry, manifest.lineage)}" + (f"  [{', '.join(marks)}]" if marks else ""))
    lines += ["", "devices:"]
    words = ["native bf16" if machine.cpu_bf16 else "no native bf16"]
    words += ["AMX"] * machine.cpu_matrices + ["int8"] * machine.cpu_int8
    lines.append(f"  cpu: {platform.processor() or platform.machine()}, {', '.join(words)}")
    unfit = ", which this build of torch has no code for"
    lines += [f"  cuda:{i}: {name}" + unfit * (i in machine.unfit) for i, name in enumerate(machine.gpus)] or [
        "  cuda: none visible"
    ]
    lines += ["", "packages:"]
    for package in _PACKAGES:
        try:
            lines.append(f"  {package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return "\n".join(lines)


def _line(entry: Entry, lineage: Lineage) -> str:
    spec = entry.spec
    parts: list[str] = [spec.kind, *(_generator_parts(spec) if isinstance(spec, GeneratorSpec) else ())]
    parts += [f"normalisation {spec.normalization.scheme}", "files " + " ".join(entry.files)]
    if (record := lineage.trainings.get(entry.sha256)) is not None and record.subjects:
        parts.append(f"fitted on {len(record.subjects)} subjects")
    return ", ".join(parts) + f", sha256 {entry.sha256[:12]}"


def _generator_parts(spec: GeneratorSpec) -> Iterator[str]:
    shape = spec.architecture
    yield f"width {shape.width}" if isinstance(shape, HfGanConfig) else shape.network
    yield "views " + " ".join(spec.views) + " (and mirrored)" * spec.flip_average
    if spec.targets != MODALITIES:
        yield f"makes {' '.join(spec.targets)} only"
    yield from (f"{target} by {name}" for target, name in spec.specialists.items())
    if spec.refiner is not None:
        yield f"refiner {spec.refiner} ({'on' if spec.refine else 'off'} by default)"
    if spec.has_confidence:
        yield f"confidence {shape.confidence}"
