"""What this installation has: models, devices, versions."""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path

from app import __version__
from app.core.constants import MODALITIES
from app.inference.device import Machine
from app.registry.manifest import Entry, read_manifest

_PACKAGES = ("torch", "onnxruntime-gpu", "onnxruntime", "nibabel", "numpy", "SimpleITK", "safetensors")


def describe(weights: Path) -> str:
    """A text of a few lines for a person.

    Raises:
        WeightsError: the manifest cannot be read.
    """
    manifest = read_manifest(weights)
    machine = Machine.probe()
    lines = [f"tetrad {__version__}, Python {platform.python_version()}", "", f"models in {weights}:"]
    for name, entry in manifest.entries.items():
        marks = [word for word, n in (("default", manifest.default), ("fallback", manifest.fallback)) if n == name]
        lines.append(f"  {name}: {_line(entry)}" + (f"  [{', '.join(marks)}]" if marks else ""))
    lines += ["", "devices:"]
    bf16 = "native bf16" if machine.cpu_bf16 else "no native bf16"
    lines.append(f"  cpu: {platform.processor() or platform.machine()}, {bf16}")
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


def _line(entry: Entry) -> str:
    parts: list[str] = [entry.kind]
    if entry.kind == "generator":
        shape = entry.details["architecture"]
        mirrored = " (and mirrored)" if entry.details.get("flip_average") else ""
        parts += [shape.get("network", f"width {shape.get('width')}"), "views " + " ".join(entry.views) + mirrored]
        if entry.makes != MODALITIES:
            parts.append(f"makes {' '.join(entry.makes)} only")
        parts += [f"{target} by {name}" for target, name in entry.details.get("specialists", {}).items()]
        if refiner := entry.details.get("refiner"):
            parts.append(f"refiner {refiner} ({'on' if entry.details.get('refine') else 'off'} by default)")
        if (head := shape.get("confidence", "none")) != "none":
            parts.append(f"confidence {head}")
    parts += [f"normalisation {entry.normalization.scheme}", "files " + " ".join(entry.files)]
    if subjects := entry.details.get("training", {}).get("subjects"):
        parts.append(f"fitted on {subjects} subjects")
    return ", ".join(parts) + f", sha256 {entry.sha256[:12]}"
