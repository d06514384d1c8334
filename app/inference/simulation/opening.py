"""Open a published network that makes exams."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from app.core.errors import WeightsError
from app.inference.device import Machine, choose_device
from app.inference.simulation.atlas import read_atlas
from app.inference.simulation.simulator import ExamSimulator
from app.registry.checkpoints import load_simulator
from app.registry.identity import Identity
from app.registry.manifest import Entry, read_manifest, spec_as
from app.registry.spec import CgSamrSpec


@dataclass(frozen=True)
class OpenedSimulator:
    """Hold a published network that is ready to make exams.

    Attributes:
        taught_by: names of the subjects that it, or what it was made from, learnt from.
    """

    simulator: ExamSimulator
    identity: Identity
    taught_by: frozenset[str]


def open_simulator(weights: Path, name: str | None, device: str) -> OpenedSimulator:
    """Open a model of the kind `cgsamr`, with its atlas.

    Args:
        name: the model; None for the only one there, or the only one that was trained on pairs.
        device: auto, cpu or cuda[:N].

    Raises:
        WeightsError: there is none of that name and kind, several where none is named, or a file is damaged.
        DeviceError: the device is not there.
    """
    entry = _entry(weights, name)
    spec = spec_as(entry, CgSamrSpec)
    place = torch.device(choose_device(device, Machine.probe())[0])
    network, atlas = load_simulator(entry).to(place), read_atlas(entry.path_of("atlas"))
    known = read_manifest(weights).lineage.ancestry([entry.sha256]).subjects
    simulator = ExamSimulator(network, spec.architecture, spec.canvas, atlas, place)
    return OpenedSimulator(simulator, entry.identity, frozenset(known))


def _entry(weights: Path, name: str | None) -> Entry:
    manifest = read_manifest(weights)
    if name is not None:
        return manifest.entry(name)
    there = [e for e in manifest.entries.values() if isinstance(e.spec, CgSamrSpec)]
    if len(there) > 1:
        # An unpaired one segments, too, and is there for that.
        there = [e for e in there if spec_as(e, CgSamrSpec).architecture.form != "ucgsamr"] or there
    if len(there) != 1:
        known = ", ".join(e.name for e in there) or "none"
        raise WeightsError(
            f"{weights} has these models that make exams: {known}; name one with --model, or train the recipe "
            "cgsamr_compact and export it."
        )
    return there[0]
