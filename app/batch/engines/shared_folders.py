"""Make sure that every worker sees the folders of a run, and the same ones."""

from __future__ import annotations

import os
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from app.batch.outcomes import Outcome
from app.core.config import RunConfig
from app.core.errors import DeviceError

_Config = TypeVar("_Config", bound=RunConfig)

#: How long network file systems may take to show a new file to other machines.
PATIENCE_SECONDS: Final = 20.0


def with_absolute_paths(config: _Config) -> _Config:
    """Name all files and folders of a run from the root: workers have other working directories."""
    paths: dict[str, Any] = {
        f.name: value.absolute() for f in fields(config) if isinstance(value := getattr(config, f.name), Path)
    }
    model = replace(config.model, weights_dir=config.model.weights_dir.absolute())
    return replace(config, **paths, model=model)


def check_folders(config: RunConfig) -> None:
    """Check on a worker that the folders of a run are there.

    Raises:
        DeviceError: one is not.
    """
    for folder in (config.input_dir, config.output_dir):
        if not folder.is_dir():
            raise DeviceError(f"{os.uname().nodename} does not see {folder}; mount it on every node.")


def await_outputs(outcome: Outcome, patience: float = PATIENCE_SECONDS) -> bool:
    """Tell whether what a worker says it wrote is to be seen on this machine.

    A folder of the same name that is not shared would swallow outputs, and nobody would know.
    """
    deadline = time.monotonic() + patience
    paths = [Path(output.path) for output in outcome.outputs]
    while not all(path.exists() for path in paths):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True
