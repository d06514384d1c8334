"""Define what takes the subjects of a run through the model, on one device or several."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from app.batch.engines.ray_runner import RayRunner
from app.batch.outcomes import Outcome
from app.batch.prefetch import PrefetchingRunner
from app.batch.processors.opening import open_processor
from app.batch.tracing import Trace
from app.core.config import RunConfig
from app.core.signals import SignalGuard
from app.data.cases import Case
from app.inference.device import Machine, choose_devices

log = logging.getLogger(__name__)


class SubjectRunner(Protocol):
    """Give one outcome per subject, in any order, with a model that is loaded.

    To be used as a context manager. Where the iteration ends early, `drain` gives the outcomes of what was begun.
    """

    @property
    def trace(self) -> Trace:
        """Give the spans of all stages."""

    @property
    def runtime(self) -> str:
        """Say what the model runs on, and why."""

    @property
    def model(self) -> Mapping[str, Any]:
        """Name the model (see `app.registry.manifest.identity_record`)."""

    def __enter__(self) -> SubjectRunner: ...

    def __exit__(self, *_: object) -> None: ...

    def __iter__(self) -> Iterator[Outcome]: ...

    def drain(self) -> Iterator[Outcome]:
        """End the work; give the outcomes that are not given yet."""


def names_several(config: RunConfig) -> bool:
    """Tell whether a run may use several devices of this machine."""
    return config.runtime.device == "all" or "," in config.runtime.device


def open_runner(config: RunConfig, cases: Sequence[Case], guard: SignalGuard) -> SubjectRunner:
    """Load the model: a device or weights that are not there must be known before an hour of work.

    Args:
        guard: what turns signals into `Interrupted`; a message between processes is shielded from it.

    Raises:
        WeightsError, DeviceError, UsageError: the model cannot be loaded.
    """
    devices = [config.runtime.device]
    if names_several(config) and config.cluster.ray_address is None:
        devices = choose_devices(config.runtime.device, Machine.probe())
    if len(devices) > 1 or config.cluster.engine == "ray":
        return RayRunner(config, devices, cases, guard)
    config = replace(config, runtime=replace(config.runtime, device=devices[0]))
    runner = PrefetchingRunner(open_processor(config), cases)
    log.info("Model %s: %s.", runner.model["name"], runner.runtime)
    return runner
