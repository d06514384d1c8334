"""Comparison of a new model with those whose place it would take."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from app.core.constants import Modality
from app.core.errors import UsageError
from app.inference.loading import choose_refiner
from app.inference.synthesizer import Synthesizer
from app.registry.checkpoints import load_refiner
from app.registry.lineage import ModelScores
from app.registry.manifest import MANIFEST, Entry, Manifest, read_manifest
from app.registry.spec import GeneratorSpec
from app.training import validation
from app.training.promotion.request import ExportRequest
from app.training.validation import SELECTION_METRICS, rounded, rounded_means

log = logging.getLogger(__name__)


def replaced_by(
    weights: Path, name: str, make_default: bool, specialist_of: str | None = None
) -> list[tuple[Manifest, Entry]]:
    """List the models whose place the new one would take, at least in part.

    That of its name, the default if it shall be it, and who leaves it sequences if it shall be a specialist.
    """
    if not (weights / MANIFEST).exists():
        return []
    manifest = read_manifest(weights)
    names = dict.fromkeys([name, manifest.default if make_default else specialist_of])
    return [(manifest, manifest.entries[n]) for n in names if n is not None and n in manifest.entries]


def check_better(request: ExportRequest, scores: ModelScores, targets: Sequence[Modality]) -> None:
    """Refuse a generator that makes `targets` worse than one whose place it would take.

    That one counts as it is used by default: refined, and with its specialists. The new model keeps the specialists of
    the one of its name, and is compared by the sequences that they do not make.

    Raises:
        UsageError: it is worse.
    """
    for replaced in replaced_by(request.weights, request.name, request.make_default, request.specialist_of):
        _check_better_than(request, scores, replaced, targets)


def _check_better_than(
    request: ExportRequest, scores: ModelScores, replaced: tuple[Manifest, Entry], targets: Sequence[Modality]
) -> None:
    name, (manifest, entry) = request.name, replaced
    left = entry.spec.specialists if isinstance(entry.spec, GeneratorSpec) and entry.name == name else {}
    targets = [m for m in targets if m not in left] or targets
    specialists = {} if entry.name == name else manifest.specialists_of(entry)
    models = {m: specialists.get(m, entry) for m in targets}
    known = {m: _known_scores(manifest, choose_refiner(manifest, e) or e, m, scores) for m, e in models.items()}
    if any(row is None for row in known.values()):
        log.info("%s has no scores on these subjects yet; it is scored first.", entry.name)
        device = str(request.torch_device)
        model = Synthesizer(entry.name, weights=manifest.folder, device=device, specialists=entry.name != name).model
        rows = validation.score_missing_sequences(model, request.cases, request.masks, targets)
        known = {m: rounded_means([s for s in rows if s.modality == m]) for m in targets}
    before = _mean_over([row for row in known.values() if row is not None])
    check_not_worse(_mean_over([scores.by_target[m] for m in targets]), before, SELECTION_METRICS, entry.name)


def check_better_refiner(
    request: ExportRequest, scores: ModelScores, first: Entry, targets: Sequence[Modality]
) -> None:
    """Refuse a refiner that is worse than the one that its first stage has.

    Raises:
        UsageError: it is worse.
    """
    manifest = read_manifest(first.folder)
    if (before := manifest.entries.get(refiner_name(first) or "")) is None:
        return
    # What it does not refine, its first stage makes alone: with that the new one has been compared.
    common = [m for m in targets if m in load_refiner(before).targets]
    known = {m: _known_scores(manifest, before, m, scores) for m in common}
    if any(row is None for row in known.values()):
        opened = Synthesizer(first.name, weights=first.folder, device=request.device, refine=True)
        rows = validation.score_missing_sequences(opened.model, request.cases, request.masks, common)
        known = {m: rounded_means([s for s in rows if s.modality == m]) for m in common}
    new, old = ([scores.by_target[m] for m in common], [row for row in known.values() if row is not None])
    check_not_worse(_mean_over(new), _mean_over(old), SELECTION_METRICS, before.name)


def check_no_refiner_conflict(first: Entry, name: str) -> None:
    """Refuse a name under which another model's refiner, or that of several, would be overwritten.

    Raises:
        UsageError: a model other than `first` is refined by what has that name.
    """
    entries = read_manifest(first.folder).entries.values()
    if others := [e.name for e in entries if refiner_name(e) == name and e.name != first.name]:
        raise UsageError(f"{name!r} of {first.folder} refines {others[0]!r}; give the new one another name.")


def check_not_worse(now: Mapping[str, float], before: Mapping[str, float], metrics: Sequence[str], name: str) -> None:
    """Refuse a model that is worse by any of the metrics, or shares none of them.

    Raises:
        UsageError: it is worse, or cannot be compared.
    """
    both = [k for k in metrics if k in before and k in now]
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
    """Both values, with as many digits as a lineage keeps where four would not tell them apart."""
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
    return rounded({k: sum(row[k] for row in rows) / len(rows) for k in shared})
