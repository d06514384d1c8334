"""Whether a trained model may take its place in a weights folder: who was there, and who makes better images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from app.core.constants import MODALITIES, Modality
from app.core.errors import UsageError
from app.data.cases import Case
from app.evaluation.scoring import VolumeScores
from app.inference.loading import choose_refiner
from app.inference.synthesizer import Synthesizer
from app.registry.checkpoints import load_refiner
from app.registry.lineage import ModelScores
from app.registry.manifest import MANIFEST, Entry, Manifest, read_manifest
from app.registry.spec import GeneratorSpec
from app.training.checkpoint import State
from app.training.data.cache import NORMALIZATION
from app.training.validation import SELECTION_METRICS, means, score_missing_sequences

log = logging.getLogger(__name__)


def check_kind(weights: Path, name: str, kind: str) -> None:
    """Refuses to put a model in the place of one that does something else."""
    entries = read_manifest(weights).entries if (weights / MANIFEST).exists() else {}
    if name in entries and entries[name].spec.kind != kind:
        raise UsageError(f"{name!r} of {weights} is a {entries[name].spec.kind}; give the {kind} another name.")


def check_slot(state: State, weights: Path, name: str, make_default: bool, specialist_of: str | None) -> None:
    """Refuses what would leave sequences to nobody, and a specialist of what cannot have one.

    Raises:
        UsageError: the default, or the only model, would not make every sequence; or one of this name makes a sequence
            that the run does not; or `specialist_of` cannot leave it any.
    """
    makes, task = state.recipe.data.makes, state.recipe.task
    manifest = read_manifest(weights) if (weights / MANIFEST).exists() else None
    there = None if manifest is None or task != "synthesis" else manifest.entries.get(name)
    before = there.spec.targets if there is not None and isinstance(there.spec, GeneratorSpec) else ()
    if lost := [m for m in before if m not in makes]:
        raise UsageError(f"{name!r} of {weights} makes {', '.join(lost)} and the run does not; give it another name.")
    if specialist_of is None:
        without = make_default or manifest is None or manifest.default is None
        if task == "synthesis" and len(makes) < len(MODALITIES) and without:
            raise UsageError(
                f"the run makes {', '.join(makes)} only and cannot be the default; name the model that shall leave "
                "it to this one with --specialist-of."
            )
        return
    if task != "synthesis" or len(makes) == len(MODALITIES):
        raise UsageError("a specialist makes some of the four sequences (data.makes); leave out --specialist-of.")
    host = read_manifest(weights).entry(specialist_of)
    if (
        not isinstance(host.spec, GeneratorSpec)
        or host.spec.normalization != NORMALIZATION
        or host.name == name
        or make_default
    ):
        raise UsageError(
            f"{name!r} cannot be a specialist of {host.name!r}: name another model, one that sees scores as training "
            "does, and leave out --make-default."
        )


def replaced_by(
    weights: Path, name: str, make_default: bool, specialist_of: str | None = None
) -> list[tuple[Manifest, Entry]]:
    """The models whose place the new one would take, at least in part.

    That of its name, the default if it shall be it, and who leaves it sequences if it shall be a specialist.
    """
    if not (weights / MANIFEST).exists():
        return []
    manifest = read_manifest(weights)
    names = dict.fromkeys([name, manifest.default if make_default else specialist_of])
    return [(manifest, manifest.entries[n]) for n in names if n is not None and n in manifest.entries]


def check_better(
    name: str,
    scores: ModelScores,
    replaced: tuple[Manifest, Entry],
    cases: list[Case],
    masks: Mapping[str, Path],
    device: str,
    targets: Sequence[Modality],
) -> None:
    """Refuses a model that makes `targets` worse than another does by default: refined, and with its specialists.

    Args:
        name: the new model's. It keeps the specialists of the one of its name, and is compared by the sequences that
            they do not make.
    """
    manifest, entry = replaced
    left = entry.spec.specialists if isinstance(entry.spec, GeneratorSpec) and entry.name == name else {}
    targets = [m for m in targets if m not in left] or targets
    specialists = {} if entry.name == name else manifest.specialists_of(entry)
    makers = {m: specialists.get(m, entry) for m in targets}
    known = {m: _known_scores(manifest, choose_refiner(manifest, e) or e, m, scores) for m, e in makers.items()}
    if any(row is None for row in known.values()):
        log.info("%s has no scores on these subjects yet; it is scored first.", entry.name)
        model = Synthesizer(entry.name, weights=manifest.folder, device=device, specialists=entry.name != name).model
        found = score_missing_sequences(model, cases, masks, targets)
        known = {m: rounded_means([s for s in found if s.modality == m]) for m in targets}
    before = _mean_over([row for row in known.values() if row is not None])
    check_not_worse(_mean_over([scores.by_target[m] for m in targets]), before, SELECTION_METRICS, entry.name)


def check_better_refiner(
    scores: ModelScores,
    first: Entry,
    cases: list[Case],
    masks: Mapping[str, Path],
    device: str,
    targets: Sequence[Modality],
) -> None:
    """Refuses a refiner of `targets` that is worse than the one that its first stage has."""
    manifest = read_manifest(first.folder)
    if (before := manifest.entries.get(refiner_name(first) or "")) is None:
        return
    # What it does not refine, its first stage makes alone: with that the new one has been compared.
    common = [m for m in targets if m in load_refiner(before).makes]
    known = {m: _known_scores(manifest, before, m, scores) for m in common}
    if any(row is None for row in known.values()):
        model = Synthesizer(first.name, weights=first.folder, device=device, refine=True, specialists=False).model
        found = score_missing_sequences(model, cases, masks, common)
        known = {m: rounded_means([s for s in found if s.modality == m]) for m in common}
    new, old = ([scores.by_target[m] for m in common], [row for row in known.values() if row is not None])
    check_not_worse(_mean_over(new), _mean_over(old), SELECTION_METRICS, before.name)


def check_no_refiner_conflict(first: Entry, name: str) -> None:
    """Refuses a name under which another model's refiner, or that of several, would be overwritten.

    Raises:
        UsageError: a model other than `first` is refined by what has that name.
    """
    entries = read_manifest(first.folder).entries.values()
    if others := [e.name for e in entries if refiner_name(e) == name and e.name != first.name]:
        raise UsageError(f"{name!r} of {first.folder} refines {others[0]!r}; give the new one another name.")


def scores_of(found: Sequence[VolumeScores], targets: Sequence[Modality] = ()) -> ModelScores:
    """Give what a lineage keeps of a model's scores: on whom, the means over all, and those of each target.

    Raises:
        UsageError: there are none.
    """
    if not found:
        raise UsageError("no subject of --score-on could be scored; see the messages above.")
    subjects = tuple(dict.fromkeys(s.subject for s in found))
    by_target = {m: rounded_means([s for s in found if s.modality == m]) for m in targets}
    return ModelScores(subjects=subjects, mean=rounded_means(found), by_target=by_target)


def rounded_means(found: Sequence[VolumeScores]) -> dict[str, float]:
    """As a manifest keeps them."""
    return _rounded(means(found))


def check_not_worse(now: Mapping[str, float], before: Mapping[str, float], judged: Sequence[str], name: str) -> None:
    """Refuses what is worse by any of the metrics `judged`, or has none of them in common with what was before."""
    both = [k for k in judged if k in before and k in now]
    if not both:
        raise UsageError(f"{name!r} has no scores to compare with; --force replaces it.")
    behind = [k for k in both if now[k] < round(before[k], 6)]
    shown = {k: _against(k, now[k], before[k]) for k in both}
    if behind:
        rest = ", ".join(shown[k] for k in both if k not in behind)
        raise UsageError(
            f"the model is worse than {name!r}, which it would replace, in {', '.join(shown[k] for k in behind)}"
            f"{f' (not in {rest})' if rest else ''}; --force writes it."
        )
    log.info("Not worse than %s: %s", name, ", ".join(shown.values()))


def _against(metric: str, now: float, before: float) -> str:
    """Both values, with as many digits as a manifest keeps where four would not tell them apart."""
    digits = 6 if f"{now:.4f}" == f"{before:.4f}" and now != before else 4
    return f"{metric} {now:.{digits}f} (before {before:.{digits}f})"


def refiner_name(entry: Entry) -> str | None:
    """Give the name of a generator's refiner, if it has one."""
    return entry.spec.refiner if isinstance(entry.spec, GeneratorSpec) else None


def _known_scores(manifest: Manifest, entry: Entry, target: Modality, like: ModelScores) -> dict[str, float] | None:
    """A model's scores of one sequence, if they are known on the same subjects."""
    known = manifest.lineage.scores_of(entry.sha256)
    return known.by_target.get(target) if known is not None and known.subjects == like.subjects else None


def _mean_over(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over the sequences of those scores that all of them have."""
    shared = [k for k in rows[0] if all(k in row for row in rows)]
    return _rounded({k: sum(row[k] for row in rows) / len(rows) for k in shared})


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {k: round(v, 6) for k, v in values.items()}
