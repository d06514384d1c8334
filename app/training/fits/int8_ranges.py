"""Measures the ranges of a generator's tensors on exams, so that processors can run it in eight bits."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from app.core.config import ModelOptions, RuntimeOptions
from app.core.constants import MODALITIES
from app.core.errors import UsageError
from app.data.cases import Case
from app.data.discovery import scan
from app.data.loading import load_complete
from app.inference.backends import TorchBackend
from app.inference.loading import open_network
from app.inference.pipeline import prepare
from app.inference.slicewise.view_fusion import FusionOptions
from app.networks.architectures import UNetConfig
from app.networks.int8 import Range, measure_ranges
from app.networks.unet import UNetGenerator
from app.registry.checkpoints import save_ranges
from app.registry.manifest import Entry, read_manifest
from app.registry.spec import GeneratorSpec

log = logging.getLogger(__name__)

#: Exams that are enough, and of how many slices of a view one is seen.
EXAMS: Final = 8
STEP: Final = 16


def can_be_measured(entry: Entry) -> bool:
    """Tell whether a model can run in eight bits: a plain U-Net can."""
    return isinstance(entry.spec, GeneratorSpec) and isinstance(entry.spec.architecture, UNetConfig)


def calibrate(weights: Path, name: str, data: Path, subjects: Iterable[str] | None = None) -> Entry:
    """Measure a generator's ranges on complete exams, and write them beside its weights.

    Each sequence that it makes is made from all others; in every other exam from one fewer, where it needs not all.

    Args:
        data: complete subjects, such as taught it.
        subjects: names of those that may be seen; all if not given.

    Raises:
        UsageError: the model is no plain U-Net, or there is no complete subject that can be read.
        WeightsError: the folder or the model cannot be read.
        OutputError: the folder cannot be written to; it stays as it was.
    """
    entry = read_manifest(weights).entry(name)
    if not can_be_measured(entry):
        raise UsageError(f"{name!r} is no plain U-Net that makes sequences; no other network runs in eight bits.")
    known = None if subjects is None else set(subjects)
    cases = [c for c in scan(data).cases if not c.absent and (known is None or c.subject in known)]
    if not cases:
        raise UsageError(f"{data} holds no complete subject to measure on.")
    ranges = _measured(entry, [cases[i * len(cases) // EXAMS] for i in range(EXAMS)] if len(cases) > EXAMS else cases)
    if not ranges:
        raise UsageError(f"no subject of {data} could be read, so nothing was measured for {name!r}.")
    return save_ranges(entry, ranges)


def _measured(entry: Entry, cases: Sequence[Case]) -> dict[str, Range]:
    options = RuntimeOptions("cpu", "torch", "fp32")
    model = replace(open_network(entry, None, ModelOptions(), options), fusion=FusionOptions(step=STEP))
    backend = model.predictor.backend
    assert isinstance(backend, TorchBackend) and isinstance(backend.network, UNetGenerator)
    with measure_ranges(backend.network.network) as ranges:
        for number, (subject, volumes) in enumerate(load_complete(cases)):
            for target in model.spec.targets:
                out = {target}
                if number % 2 and not model.spec.needed:
                    out.add(MODALITIES[(MODALITIES.index(target) + 1) % len(MODALITIES)])
                model.predict(prepare({m: v for m, v in volumes.items() if m not in out}, model), target)
            log.info("%s seen.", subject)
        return ranges()
