"""Peak memory and time of one subject on the processor, per width, with untrained weights.

`python -m benchmarks memory [--preset half] [--precision auto]` starts the command line as a user would, on a phantom
of BraTS size (240 x 240 x 155, brain of 144 x 176 x 144), and reads the child's peak resident set.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from app.core.config import WEIGHTS_DIR
from app.core.constants import VIEWS
from app.data.phantom import write_phantom
from app.networks.architectures import HF_GAN_PRESETS, HfGanConfig
from app.networks.hf_gan import HfGan
from app.preprocessing.normalization import Normalization
from app.preprocessing.slices import Canvas
from app.registry.checkpoints import save_network
from app.registry.manifest import read_manifest
from app.registry.spec import GeneratorSpec
from benchmarks._common import brats_phantom, machine


def write_untrained(folder: Path, preset: str) -> None:
    """A generator of a preset's width with random weights, named after it."""
    torch.manual_seed(0)
    config = HfGanConfig(width=HF_GAN_PRESETS[preset])
    canvas = Canvas({"axial": (144, 176), "sagittal": (176, 144), "coronal": (144, 144)})
    intensity = read_manifest(WEIGHTS_DIR).entry("regression").path_of("intensity").read_bytes()
    spec = GeneratorSpec(
        architecture=config, normalization=Normalization("volume", background=-1.0), canvas=canvas, views=VIEWS
    )
    save_network(folder, preset, spec, HfGan(config).state_dict(), intensity=intensity)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=HF_GAN_PRESETS, default="half")
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_phantom(brats_phantom(), folder / "in", "phantom", leave_out=("t2f",))
        write_untrained(folder / "w", options.preset)
        command = [sys.executable, "-m", "app", "--input", folder / "in", "--output", folder / "out",
                   "--weights", folder / "w", "--device", "cpu", "--precision", options.precision]  # fmt: skip
        began = time.monotonic()
        subprocess.run(command, check=True)
        seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    print(f"{options.preset} width, three views, one subject: peak {peak:.0f} MiB, {seconds:.1f} s from start to exit")
    print(machine())


if __name__ == "__main__":
    main()
