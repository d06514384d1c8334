"""Makes a pseudo-validation set: complete subjects with one sequence left out, as the challenge's organisers do."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError
from app.data.cases import Case
from app.data.discovery import scan

log = logging.getLogger(__name__)

#: The seed of the organisers' script.
SEED: Final = 123456
#: The order in which its random numbers name sequences.
ORDER: Final[tuple[Modality, ...]] = ("t1c", "t1n", "t2f", "t2w")


def draw(count: int, seed: int = SEED) -> list[Modality]:
    """Which sequence each of `count` sorted folders loses: `randint(0, 4, count)` of numpy's legacy generator."""
    return [ORDER[i] for i in np.random.RandomState(seed).randint(0, 4, count)]


def make_dropout(source: Path, output: Path, seed: int = SEED, each: bool = False) -> list[tuple[str, Modality]]:
    """Copies every complete subject of `source` without one sequence.

    Args:
        output: gets `<subject>/<subject>-<sequence>.nii.gz`; with `each`, `<dropped>/<subject>/...`.
        each: drop each of the four in turn instead of drawing one.

    Returns:
        Subject and dropped sequence of every folder made.

    Raises:
        UsageError: no complete subject, or an output folder that is not empty.
    """
    found = scan(source, exclude=[output]).cases
    cases = [c for c in found if c.problem is None and not c.absent and not c.faults and not c.empty]
    for case in found:
        if case not in cases:
            reasons = [case.problem, *case.faults.values(), *case.empty.values()]
            why = next(filter(None, reasons), "it does not have all four sequences.")
            log.warning("%s is left out: %s", case.subject, why)
    if not cases:
        raise UsageError(f"{source} holds no complete subject; give a folder of subjects with four sequences.")
    if output.exists() and any(output.iterdir()):
        raise UsageError(f"{output} is not empty; give a new folder.")
    if each:
        made = [(c, m) for m in MODALITIES for c in cases]
    else:
        made = list(zip(cases, draw(len(cases), seed), strict=True))
    for case, dropped in made:
        _copy(case, [m for m in MODALITIES if m != dropped], (output / dropped if each else output) / case.subject)
    return [(c.subject, m) for c, m in made]


def _copy(case: Case, kept: Sequence[Modality], place: Path) -> None:
    try:
        place.mkdir(parents=True)
        for modality in kept:
            source = case.files[modality]
            ending = ".nii.gz" if source.name.lower().endswith(".gz") else ".nii"
            # Contents only: a read-only source must not make a read-only copy.
            shutil.copyfile(source, place / f"{case.subject}-{modality}{ending}")
    except OSError as error:
        raise UsageError(f"{place} could not be written ({error.strerror}); free space or choose another.") from None
