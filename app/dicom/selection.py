"""Choose the series of one exam, or say what a person must decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import combinations
from typing import Final

import numpy as np

from app.core.constants import MODALITIES, Modality
from app.core.errors import CaseError, UsageError, VolumeError
from app.dicom.naming import SeriesName
from app.dicom.series import SEVERAL_ECHOES, Series, geometry_of
from app.dicom.site_names import SiteNames
from app.dicom.words import says_contrast

#: Millimetres that slices must cover to show a brain; below that a series is a slab.
_HEAD_MM: Final = 110.0
#: Fewer slices that are no volume are a localizer's.
_LEAST_OF_A_HEAD: Final = 10


@dataclass(frozen=True)
class Selection:
    """Hold the series of one exam.

    Attributes:
        series: one per sequence.
        warnings: one sentence each.
    """

    series: dict[Modality, Series]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class SeriesRules:
    """Say how the series of an exam are chosen, beside those that are named one by one.

    Attributes:
        ignored: numbers or UIDs of series that are none of the four.
        study: the study's UID where there are several; its last digits will do.
        across_studies: whether series of several studies of one patient may be one exam.
        site: how the site names its series.
    """

    ignored: tuple[str, ...] = ()
    study: str | None = None
    across_studies: bool = False
    site: SiteNames | None = None


NO_RULES: Final = SeriesRules()


def one_study(series: Sequence[Series], across_studies: bool = False) -> None:
    """Check that all series are of one patient and one study.

    Args:
        across_studies: whether several studies will do.

    Raises:
        UsageError: they are not; the studies are listed.
    """
    if len({s.patient for s in series}) > 1:
        raise UsageError(f"the study holds series of {len({s.patient for s in series})} patients; give one patient's.")
    studies = {s.study for s in series}
    if len(studies) > 1 and not across_studies:
        listed = "; ".join(f"{uid[-12:]}: {sum(s.study == uid for s in series)} series" for uid in sorted(studies))
        raise UsageError(
            f"the folder holds {len(studies)} studies ({listed}); give the folder of one, or name it (--study-uid); "
            "if the patient was scanned in one day and they belong together, --allow-other-study."
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


def names_of(series: Sequence[Series], site: SiteNames | None = None) -> dict[str, SeriesName]:
    """Name each series of a study, by its UID, in the light of the others.

    An agent that is typed once stands in every series of an exam, those before it too. Where all series name one, it
    tells nothing.

    Args:
        site: what it says of a series goes before what the series says of itself.
    """
    names: dict[str, SeriesName] = {}
    for study in {s.study: None for s in series}:
        names |= _by_headers([s for s in series if s.study == study])
    for one in series:
        if site is not None and (said := site.name(one.header.description)) is not None:
            names[one.uid] = replace(said, agent_is_everywhere=names[one.uid].agent_is_everywhere)
    return names


def _by_headers(series: Sequence[Series]) -> dict[str, SeriesName]:
    alone = {s.uid: s.name_among_others() for s in series}
    others = [s for s in series if alone[s.uid].sequence in {"t2w", "t2f"}]
    t1 = [s for s in series if alone[s.uid].sequence in {"t1n", "t1c"}]
    everywhere = all(s.header.agent for s in (*others, *t1)) and len(others) + len(t1) > 1
    if not everywhere:
        return alone
    return {s.uid: replace(s.name_among_others(agent_counts=False), agent_is_everywhere=True) for s in series}


def choose(series: Sequence[Series], asked: Mapping[Modality, str], rules: SeriesRules = NO_RULES) -> Selection:
    """Choose a series for each sequence.

    Args:
        asked: per sequence what the user names: a series' number or UID, which always wins.
        rules: what else is said of the series.

    Raises:
        UsageError: a series that is asked for is not there, or the series are of several patients or studies.
        CaseError: two series may be the T1n or the T1c, or one that may be what lacks is not understood.
    """
    one_study(series, rules.across_studies)
    chosen = {m: _named(series, text, f"--{m}") for m, text in asked.items()}
    for one, other in combinations(chosen, 2):
        if chosen[one].uid == chosen[other].uid:
            raise UsageError(f"--{one} and --{other} name the same series, {chosen[one].title}.")
    out = {s.uid for s in (*chosen.values(), *(_named(series, text, "--ignore") for text in rules.ignored))}
    names = names_of(series, rules.site)
    rest = [s for s in series if s.uid not in out and not _is_none_by_site(names[s.uid])]
    warnings: list[str] = []
    for modality in MODALITIES:
        if modality in chosen:
            continue
        candidates = _volumes([s for s in rest if names[s.uid].sequence == modality], warnings)
        if modality == "t1n":
            given = [s for s in series if s is chosen.get("t1c") or _shows_contrast(s, names)]
            candidates = [
                native
                for study in {s.study: None for s in candidates}
                for native in _native(
                    _in(study, candidates), _in_reach(_in(study, candidates), given), names, warnings, "t1c" in asked
                )
            ]
        if candidates:
            chosen[modality] = _finest(candidates, modality, warnings)
    _ask(rest, names, chosen)
    native = chosen.get("t1n")
    if native is not None and "t1c" not in chosen:
        _ask_about_others(native, [s for s in rest if names[s.uid].sequence == "t1n" and not names[s.uid].sure])
    if native is not None and "t1n" not in asked and not names[native.uid].sure and not _is_told(native, series, names):
        warnings.append(f"{native.title} is taken for T1n, since no contrast is named; if it was given, say --t1c.")
    lacking = _lacking(chosen)
    # It may be the very sequence that seems to lack.
    warnings += [
        f"{s.title} is passed over, since {names[s.uid].why}; if it is the sequence that lacks, name it."
        for s in rest
        if names[s.uid].sequence is None and s.problem is None and s.may_be & lacking
    ]
    return Selection({m: chosen[m] for m in MODALITIES if m in chosen}, tuple(warnings))


def _in(study: str, series: Sequence[Series]) -> list[Series]:
    return [s for s in series if s.study == study]


def _in_reach(candidates: Sequence[Series], contrast: Sequence[Series]) -> list[Series]:
    """Choose the series whose contrast may show in a candidate: of its study, or scanned within a day of it."""
    return [s for s in contrast if any(s.study == c.study or not _is_days_apart(s, c) for c in candidates)]


def _is_days_apart(one: Series, other: Series) -> bool:
    """Whether times say that a day lies between two series; without them nothing says so."""
    try:
        first, second = (datetime.strptime((s.header.moment or "")[:14], "%Y%m%d%H%M%S") for s in (one, other))
    except ValueError:
        return False
    return abs(first - second) >= timedelta(days=1)


def _is_none_by_site(name: SeriesName) -> bool:
    return name.by_site and name.sequence is None


def _shows_contrast(series: Series, names: Mapping[str, SeriesName]) -> bool:
    """Whether a series, of whatever kind, was scanned after contrast."""
    if series.problem is not None:
        return False
    name = names[series.uid]
    if name.by_site and name.sequence == "t1n":
        return False
    tells = series.header.agent and not name.agent_is_everywhere
    return name.sequence == "t1c" or tells or says_contrast(series.header.description)


def _ask_about_others(native: Series, others: Sequence[Series]) -> None:
    """Ask about a T1 beside the T1n of whose contrast nothing is said: it may be the T1c that seems to lack.

    Raises:
        CaseError: there is one.
    """
    for series in others:
        if series is native or not _is_volume(series):
            continue
        raise CaseError(
            f"{series.title} may be the t1c: {native.title} is taken for the t1n, and of this one nobody says "
            f"whether it is with contrast; name it by --t1c {series.number}, or say that it is none "
            f"(--ignore {series.number})."
        )


def _is_volume(series: Series) -> bool:
    try:
        geometry_of(series)
    except VolumeError:
        return False
    return True


def _is_told(native: Series, series: Sequence[Series], names: Mapping[str, SeriesName]) -> bool:
    """Whether a T1 without a word of contrast stands beside one with: by times of both, or by neither."""
    others = [s.header.moment for s in series if s is not native and _shows_contrast(s, names)]
    known = [moment is not None for moment in (native.header.moment, *others)]
    return bool(others) and (all(known) or not any(known))


def _volumes(candidates: list[Series], warnings: list[str]) -> list[Series]:
    """Leave out localizers: slices of several directions, or a few that are no volume."""
    sound = [s for s in candidates if _is_volume(s)]
    broken = [s for s in candidates if s not in sound]
    localizers = [s for s in broken if len(s.slices) < _LEAST_OF_A_HEAD or s.has_several_directions]
    if candidates and not sound and len(localizers) == len(broken) and any(s.slices for s in broken):
        warnings += [f"{s.title} is passed over: it is a localizer." for s in localizers]
        return []
    return sound or candidates


def _native(
    candidates: list[Series],
    contrast: Sequence[Series],
    names: Mapping[str, SeriesName],
    warnings: list[str],
    asked_t1c: bool,
) -> list[Series]:
    """Leave the T1 that are without contrast: by name, or since they were scanned before it was given.

    Args:
        contrast: series that were scanned after it, of whatever kind.
        asked_t1c: whether the user names the T1c.

    Raises:
        CaseError: nobody knows which of several are, or whether the only one was scanned before contrast.
    """
    if sure := [s for s in candidates if names[s.uid].sure]:
        return sure
    moments = [s.header.moment for s in (*candidates, *contrast)]
    is_known = any(names[s.uid].sequence == "t1c" for s in contrast)
    if not contrast or not all(moments):
        if len(candidates) > 1 or (candidates and contrast and not is_known and not asked_t1c):
            raise _which(candidates, "t1n")
        return candidates
    given = min(s.header.moment or "" for s in contrast)
    after = [s for s in candidates if (s.header.moment or "") > given]
    if after and not (is_known or asked_t1c):
        raise CaseError(
            f"{after[0].title} was scanned after contrast was given ({contrast[0].title}), and its name says nothing; "
            f"say by --t1c {after[0].number} or --t1n {after[0].number} what it is."
        )
    warnings += [f"{s.title} is passed over: it was scanned after the contrast of {contrast[0].title}." for s in after]
    return [s for s in candidates if s not in after]


def _finest(candidates: Sequence[Series], modality: Modality, warnings: list[str]) -> Series:
    """Choose among series of one weighting: no slab, as scanned, the thinnest slices, the most of them, the first.

    Raises:
        CaseError: the slices of one of them are no volume.
    """
    if len(candidates) == 1:
        return candidates[0]
    ranks = []
    for series in candidates:
        try:
            volume = geometry_of(series)
        except VolumeError:
            raise _which(candidates, modality) from None
        edges, count = np.linalg.norm(volume.affine[:3, :3], axis=0), len(volume.order)
        is_slab = bool(edges[2] * count < _HEAD_MM)
        late = modality == "t2f" and says_contrast(series.header.description)
        ranks.append((is_slab, late, series.header.is_derived, round(float(edges.max()), 1), -count, series.number))
    best = candidates[ranks.index(min(ranks))]
    others = ", ".join(s.title for s in candidates if s is not best)
    warnings.append(
        f"{best.title} is taken for the {modality}: of its kind it shows the head, as scanned, in the thinnest slices. "
        f"There is also {others} (--{modality} takes another)."
    )
    return best


def _which(candidates: Sequence[Series], modality: Modality) -> CaseError:
    if len(candidates) == 1:
        return CaseError(
            f"{candidates[0].title} may be with contrast, which another series shows; say by --t1c "
            f"{candidates[0].number} or --t1n {candidates[0].number} what it is."
        )
    titles = " and ".join(s.title for s in candidates)
    return CaseError(f"{titles} may each be the {modality}; name one of them by --{modality}.")


def _ask(rest: Sequence[Series], names: Mapping[str, SeriesName], chosen: Mapping[Modality, Series]) -> None:
    """Ask about a series that may be a sequence that lacks.

    Raises:
        CaseError: there is one.
    """
    lacking = _lacking(chosen)
    for series in rest:
        name = names[series.uid]
        if name.ask and (not series.may_be or series.may_be & lacking):
            raise CaseError(
                f"{series.title}: {name.why}; say which sequence it is (such as --t2w {series.number}), or that it is "
                f"none (--ignore {series.number})."
            )
        if series.problem == SEVERAL_ECHOES and "t2w" in lacking:
            raise CaseError(
                f"{series.title} {series.problem}: one of them may be the T2w; or say that none is "
                f"(--ignore {series.number})."
            )


def _lacking(chosen: Mapping[Modality, Series]) -> set[str]:
    """List the weightings of the sequences that lack."""
    return {"t1" if m in {"t1n", "t1c"} else m for m in MODALITIES if m not in chosen}


def _named(series: Sequence[Series], text: str, option: str) -> Series:
    found = [s for s in series if text in {s.uid, str(s.number)}]
    if len(found) != 1:
        known = ", ".join(str(s.number) for s in series)
        what = "no series has" if not found else f"{len(found)} series have"
        raise UsageError(f"{what} the number or UID {text!r} ({option}); there are {known}.")
    return found[0]
