"""What the benchmarks share: a phantom of BraTS size, and the machine in words."""

from __future__ import annotations

import argparse
import io
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from app.data.phantom import Phantom, make_phantom

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPE = (240, 240, 155)


def brats_phantom() -> Phantom:
    """A phantom on the grid of BraTS files, its brain as large as an adult's."""
    small = make_phantom((144, 176, 144))
    margins = [((n - s) // 2, n - s - (n - s) // 2) for n, s in zip(SHAPE, small.labels.shape, strict=True)]
    volumes = {m: np.pad(v, margins) for m, v in small.volumes.items()}
    return Phantom(volumes, np.pad(small.labels, margins), small.affine)


def phantom_of(shape: str) -> Phantom:
    """`brats`, or a `small` one for a look at the benchmark itself."""
    return make_phantom((80, 96, 72)) if shape == "small" else brats_phantom()


def choose(names: Iterable[str], asked: str, parser: argparse.ArgumentParser) -> list[str]:
    """The variants that `--only` names, separated by commas; all where it is empty. An unknown one ends the program."""
    known = list(names)
    wanted = asked.split(",") if asked else known
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"no variant {unknown[0]!r}; there are: {', '.join(known)}")
    return [name for name in known if name in wanted]


def as_png(figure: Figure) -> bytes:
    """A drawn figure as PNG."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()


def machine() -> str:
    """Versions, threads and processor, for the line under a table."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.machine()
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {processor}"
