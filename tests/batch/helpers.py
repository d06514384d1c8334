"""What the tests of a run share."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from app.batch.prefetch import WRITE_BEHIND
from app.core.config import ModelOptions, RunConfig, RuntimeOptions

#: Subjects that are in one process at a time with one reader: two read ahead, one computed, the rest to be written.
MOST_HELD = 1 + 1 + 1 + WRITE_BEHIND


def config_of(place: Path, weights: Path, **options) -> RunConfig:
    runtime = RuntimeOptions(**{k: options.pop(k) for k in ("device", "precision", "batch_size") if k in options})
    chosen = {k: options.pop(k) for k in ("model", "flip_average", "fusion", "refine", "specialists") if k in options}
    model = ModelOptions(weights, **{"model": "regression", **chosen}, with_error="confidence_dir" in options)
    return RunConfig(place / "in", place / "out", runtime, model, **options)


def names_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def write_copies(write_subject, folder: Path, subjects: Iterable[str]) -> None:
    """One exam under several names, written once: links, so replace such a file before you change it."""
    first, *others = subjects
    files = write_subject(folder / first)
    for name in others:
        (folder / name).mkdir()
        for path in files.values():
            os.link(path, folder / name / path.name.replace(first, name))


def replace_file(path: Path, content: bytes) -> None:
    """Gives one of several links another content."""
    path.unlink()
    path.write_bytes(content)
