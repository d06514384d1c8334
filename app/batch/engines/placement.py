"""Decide how many workers a cluster has room for, and what each of them gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from app.core.config import RunConfig
from app.core.errors import DeviceError, UsageError

#: Cores of a worker without a GPU: more of them make one exam little faster.
_CORES: Final = 4
#: Three thirds of a GPU are one.
_ROUNDING: Final = 1e-6


@dataclass(frozen=True)
class Node:
    """Say what one machine of a cluster offers."""

    cores: int
    gpus: float = 0.0


@dataclass(frozen=True)
class Place:
    """Say what one worker runs on.

    Attributes:
        device: as `--device` names it.
        cores: those that it has for itself.
        gpus: the share of a GPU that the cluster picks for it; 0 where `device` names one, or none is used.
    """

    device: str
    cores: int
    gpus: float = 0.0


def names_devices(device: str) -> bool:
    """Tell whether `--device` names devices of this machine one by one."""
    return "," in device or ":" in device


def places_of(devices: Sequence[str], cores: int, asked: int | None = None) -> list[Place]:
    """Share the cores of this machine between named devices.

    Args:
        asked: cores of each, where the user says so.
    """
    each = asked or max(1, cores // len(devices))
    return [Place(device, each) for device in devices]


def choose_places(nodes: Sequence[Node], config: RunConfig) -> list[Place]:
    """Fill a cluster with equal workers: each with its share of a GPU, or its cores.

    Raises:
        UsageError: the device cannot be one of a cluster.
        DeviceError: there is room for no worker.
    """
    device, options = config.runtime.device, config.cluster
    if device not in {"auto", "cpu", "cuda", "all"}:
        raise UsageError(f"device {device!r} names no devices of a cluster; use auto, cpu, cuda or all.")
    on_gpus = device in {"cuda", "all"} or (device == "auto" and any(node.gpus >= 1 for node in nodes))
    place = (
        _on_gpus(nodes, options.worker_gpus, options.worker_cores)
        if on_gpus
        else _on_cores(nodes, options.worker_cores)
    )
    count = sum(_room(node, place) for node in nodes)
    if count == 0:
        wanted = f"{place.gpus:g} GPU and {place.cores} cores" if on_gpus else f"{place.cores} cores"
        raise DeviceError(f"no node of the cluster has room for a worker of {wanted}; ask for less or add nodes.")
    return [place] * min(count, options.workers or count)


def _on_gpus(nodes: Sequence[Node], share: float, cores: int | None) -> Place:
    """Give each worker its share of a GPU and of the cores beside it, as few as the poorest node has."""
    per_node = [node.cores // _fitting(node.gpus, share) for node in nodes if _fitting(node.gpus, share)]
    return Place("cuda", cores or max(1, min(per_node, default=1)), share)


def _on_cores(nodes: Sequence[Node], cores: int | None) -> Place:
    return Place("cpu", cores or max(1, min([_CORES, *(node.cores for node in nodes if node.cores)])))


def _room(node: Node, place: Place) -> int:
    """Count the workers that a node can hold."""
    by_cores = node.cores // place.cores
    return min(by_cores, _fitting(node.gpus, place.gpus)) if place.gpus else by_cores


def _fitting(gpus: float, share: float) -> int:
    """Count the shares that fit: no worker spans two GPUs."""
    return int(gpus) * int(1 / share + _ROUNDING)
