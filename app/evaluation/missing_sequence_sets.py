"""Make validation sets as the organisers do: complete subjects without one sequence."""

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


def draw_sequences(count: int, seed: int = SEED) -> list[Modality]:
    """Draw the sequence that each of `count` sorted folders loses, as the organisers' script does."""
    # By numpy's legacy generator, whose numbers are those of the script.
    return [ORDER[i] for i in np.random.RandomState(seed).randint(0, 4, count)]


def make_missing_sequence_set(
    source: Path, output: Path, seed: int = SEED, each: bool = False
) -> list[tuple[str, Modality]]:
    """Copy every complete subject of `source` without one sequence.

    Args:
        output: gets `<subject>/<subject>-<sequence>.nii.gz`; with `each`, `<dropped>/<subject>/...`.
        each: drop each of the four in turn instead of drawing one.

    Returns:
        Subject and dropped sequence of every new folder.

    Raises:
        UsageError: no complete subject, or an output folder that is not empty.
    """
    cases = _complete_cases(source, output)
    if not cases:
        raise UsageError(f"{source} holds no complete subject; give a folder of subjects with four sequences.")
    if output.exists() and any(output.iterdir()):
        raise UsageError(f"{output} is not empty; give a new folder.")
    if each:
        exams = [(c, m) for m in MODALITIES for c in cases]
    else:
        exams = list(zip(cases, draw_sequences(len(cases), seed), strict=True))
    for case, dropped in exams:
        _copy(case, [m for m in MODALITIES if m != dropped], (output / dropped if each else output) / case.subject)
    return [(c.subject, m) for c, m in exams]


def _complete_cases(source: Path, output: Path) -> list[Case]:
    """Find subjects with four usable sequences; log the others by name."""
    cases = []
    for case in scan(source, exclude=[output]).cases:
        if case.problem is None and len(case.usable) == len(MODALITIES):
            cases.append(case)
            continue
        reasons = [case.problem, *case.runs.values(), *case.faults.values(), *case.empty.values()]
        why = next(filter(None, reasons), "it does not have all four sequences.")
        log.warning("%s is left out: %s", case.subject, why)
    return cases


def _copy(case: Case, modalities: Sequence[Modality], place: Path) -> None:
    try:
        place.mkdir(parents=True)
        for modality in modalities:
            source = case.files[modality]
            ending = ".nii.gz" if source.name.lower().endswith(".gz") else ".nii"
            # Contents only: a read-only source must not make a read-only copy.
            shutil.copyfile(source, place / f"{case.subject}-{modality}{ending}")
    except OSError as error:
        raise UsageError(f"{place} could not be written ({error.strerror}); free space or choose another.") from None
