"""Choose the series of one exam, or say what a person must decide."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import numpy as np

from app.core.constants import MODALITIES, Modality
from app.core.errors import CaseError, UsageError, VolumeError
from app.dicom.naming import weighting_by_physics
from app.dicom.series import Series, geometry_of

#: Millimetres that slices must cover to show a brain; below that a series is a slab.
_HEAD_MM: Final = 110.0


@dataclass(frozen=True)
class Selection:
    """Hold the series of one exam.

    Attributes:
        series: one per sequence.
        warnings: one sentence each.
    """

    series: dict[Modality, Series]
    warnings: tuple[str, ...]


def one_study(series: Sequence[Series]) -> None:
    """Check that all series are of one patient and one study.

    Raises:
        UsageError: they are not; the studies are listed.
    """
    if len({s.patient for s in series}) > 1:
        raise UsageError(f"the study holds series of {len({s.patient for s in series})} patients; give one patient's.")
    studies = {s.study for s in series}
    if len(studies) > 1:
        listed = "; ".join(f"{uid[-12:]}: {sum(s.study == uid for s in series)} series" for uid in sorted(studies))
        raise UsageError(
            f"the folder holds {len(studies)} studies ({listed}); give the folder of one, or name it (--study-uid)."
        )


def of_study(series: Sequence[Series], uid: str | None) -> list[Series]:
    """Choose the series of one study.

    Args:
        uid: of the study, or its last digits; all series if not given.

    Raises:
        UsageError: no study, or more than one, has that UID.
    """
    if uid is None:
        return list(series)
    studies = sorted({s.study for s in series if s.study.endswith(uid)})
    if len(studies) != 1:
        there = ", ".join(sorted({s.study[-12:] for s in series}))
        raise UsageError(f"{'no study has' if not studies else f'{len(studies)} studies have'} the UID {uid!r} "
                         f"(--study-uid); there are {there}.")  # fmt: skip
    return [s for s in series if s.study == studies[0]]


def choose(series: Sequence[Series], asked: Mapping[Modality, str]) -> Selection:
    """Choose a series for each sequence.

    Args:
        asked: per sequence what the user names: a series' number or UID, which always wins.

    Raises:
        UsageError: a series that is asked for is not there, or the series are of several patients or studies.
        CaseError: two series may be the T1n or the T1c, or one that may be a sequence is not understood.
    """
    one_study(series)
    chosen = {m: _named(series, m, text) for m, text in asked.items()}
    for one, other in combinations(chosen, 2):
        if chosen[one].uid == chosen[other].uid:
            raise UsageError(f"--{one} and --{other} name the same series, {chosen[one].title}.")
    taken = {s.uid for s in chosen.values()}
    rest = [s for s in series if s.uid not in taken]
    warnings: list[str] = []
    for modality in MODALITIES:
        candidates = _volumes([s for s in rest if s.name.sequence == modality and modality not in chosen])
        # Of two T1 without a word of contrast one may be the T1c, unless that one is known.
        if len(candidates) > 1 and (modality != "t1n" or "t1c" in chosen) and (best := _finest(candidates)):
            others = ", ".join(s.title for s in candidates if s is not best)
            warnings.append(
                f"{best.title} is taken for the {modality}: of those that show the head its slices are the thinnest. "
                f"{others} would do as well (--{modality})."
            )
            candidates = [best]
        if len(candidates) > 1:
            titles = " and ".join(s.title for s in candidates)
            raise CaseError(
                f"{titles} may both be the {modality}; name one of them (--{modality} {candidates[0].number})."
            )
        if candidates:
            chosen[modality] = candidates[0]
    unclear = [s for s in rest if s.name.ask]
    if unclear and len(chosen) < len(MODALITIES):
        first = unclear[0]
        raise CaseError(
            f"{first.title}: {first.name.why}; say which sequence it is (--t1n {first.number} and so on), or leave its "
            "files out."
        )
    native = chosen.get("t1n")
    if native is not None and "t1c" not in chosen and "t1n" not in asked:
        warnings.append(f"{native.title} is taken for T1n, since no contrast is named; if it was given, say --t1c.")
    # It may be the very sequence that seems to lack.
    warnings += [
        f"{s.title} is passed over, since {s.name.why}; if it is the sequence that lacks, name it."
        for s in rest
        if s.name.sequence is None
        and s not in chosen.values()
        and s.problem is None
        and weighting_by_physics(s.header) in _lacking(chosen)
    ]
    return Selection({m: chosen[m] for m in MODALITIES if m in chosen}, tuple(warnings))


def _volumes(candidates: list[Series]) -> list[Series]:
    """Leave out candidates whose slices are no volume, such as localizers, where another's are one."""
    if len(candidates) < 2:
        return candidates
    sound = []
    for series in candidates:
        with contextlib.suppress(VolumeError):
            geometry_of(series)
            sound.append(series)
    return sound or candidates


def _finest(candidates: Sequence[Series]) -> Series | None:
    """Choose among series of one weighting: no slab, then the thinnest slices, the most of them, the latest.

    Returns:
        None where the slices of one of them are no volume.
    """
    ranks = []
    for series in candidates:
        try:
            volume = geometry_of(series)
        except VolumeError:
            return None
        edges = np.linalg.norm(volume.affine[:3, :3], axis=0)
        count = len(volume.order)
        is_slab = bool(edges[2] * count < _HEAD_MM)
        ranks.append((is_slab, round(float(edges.max()), 1), -count, -series.number))
    return candidates[ranks.index(min(ranks))]


def _lacking(chosen: Mapping[Modality, Series]) -> set[str]:
    """List the weightings of the sequences that lack."""
    return {"t1" if m in {"t1n", "t1c"} else m for m in MODALITIES if m not in chosen}


def _named(series: Sequence[Series], modality: Modality, text: str) -> Series:
    found = [s for s in series if text in {s.uid, str(s.number)}]
    if len(found) != 1:
        known = ", ".join(str(s.number) for s in series)
        what = "no series has" if not found else f"{len(found)} series have"
        raise UsageError(f"{what} the number or UID {text!r} (--{modality}); there are {known}.")
    return found[0]
