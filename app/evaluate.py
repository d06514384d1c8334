"""Scores synthesised sequences against the real ones: tidy rows, a summary, paired comparison of two folders.

Nothing is dropped in silence: a prediction without a truth, a truth without a prediction, another grid, an empty mask
and values that are not finite all end up among the problems, and problems make the command fail.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from app.cases import find_segmentations, images_below, parse_name, scan, tumour_type
from app.constants import MODALITIES, Modality
from app.errors import UsageError, VolumeError
from app.files import save_bytes
from app.metrics.image import image_scores
from app.metrics.official import Border
from app.metrics.segmentation import segmentation_scores
from app.volume import load_volume

log = logging.getLogger(__name__)

#: What the printed table shows, in order, with the number of decimals.
COLUMNS: dict[str, int] = {
    "official_healthy": 4,
    "official_tumour": 4,
    "ssim_brain": 3,
    "ssim_tumour": 3,
    "psnr_brain": 2,
    "stripe_superior": 2,
}
_BOOTSTRAPS = 10_000


@dataclass(frozen=True)
class Pair:
    """One synthesised volume, what it is compared with, and the subject's other real sequences."""

    subject: str
    modality: Modality
    prediction: Path
    reference: Path
    segmentation: Path | None
    others: dict[Modality, Path] = field(default_factory=dict)


@dataclass
class Scores:
    """Scores of one volume by metric name, and what was wrong."""

    subject: str
    modality: str
    values: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def tumour_type(self) -> str:
        """See `app.cases.tumour_type`."""
        return tumour_type(self.subject)


def find_pairs(prediction: Path, reference: Path, segmentations: Path | None = None) -> tuple[list[Pair], list[str]]:
    """Matches predictions with real sequences (and masks) by name.

    Args:
        segmentations: where `<subject>-seg.nii.gz` lie; the reference folder if not given.

    Returns:
        The pairs, sorted, and a sentence for everything that has no counterpart.

    Raises:
        UsageError: a folder does not exist, or no pair is found.
    """
    cases = scan(reference).cases
    truths = {(c.subject, m): f for c in cases for m, f in c.files.items()}
    masks = find_segmentations(segmentations) if segmentations else find_segmentations(reference, cases)
    pairs, problems = [], []
    if not prediction.is_dir():
        raise UsageError(f"the prediction folder {prediction} does not exist.")
    found: dict[tuple[str, Modality], Path] = {}
    for path in images_below(prediction):
        named = parse_name(path)
        if named is None:
            continue
        if named in found:
            problems.append(f"{path} is left out: {found[named]} is scored as {named[1]} of {named[0]}; keep one.")
            continue
        found[named] = path
        if named not in truths:
            problems.append(f"{path} has no counterpart in {reference}.")
            continue
        mask = masks.get(named[0])
        if mask is None:
            problems.append(f"{named[0]} has no segmentation: its official score is over the whole volume.")
        others = {m: f for (s, m), f in truths.items() if s == named[0] and m != named[1]}
        pairs.append(Pair(named[0], named[1], path, truths[named], mask, others))
    if not pairs:
        raise UsageError(f"no file of {prediction} has a counterpart in {reference}; both name <subject>-<sequence>.")
    predicted = {p.subject for p in pairs}
    problems += [f"{s} of {reference} has no prediction." for s in sorted({s for s, _ in truths} - predicted)]
    counts = Counter(p.subject for p in pairs)
    if len(counts) > 1 and max(counts.values()) == len(MODALITIES):
        # Each sequence was dropped in turn.
        problems += [
            f"{prediction} has no {m} of {s}, and all four of others."
            for s in sorted(predicted) for m in MODALITIES if (s, m) in truths and (s, m) not in found
        ]  # fmt: skip
    return pairs, list(dict.fromkeys(problems))


def score_pair(pair: Pair, border: Border = "keep") -> Scores:
    """Scores one pair; what cannot be scored becomes a problem that names the file."""
    scores = Scores(pair.subject, pair.modality)
    try:
        made, truth = load_volume(pair.prediction, strict=True), load_volume(pair.reference, strict=True)
        if not made.grid.same_as(truth.grid):
            difference = made.grid.difference(truth.grid)
            raise VolumeError(f"{pair.prediction} is not on the grid of {pair.reference} ({difference}).")
        if made.data.max() == made.data.min():
            scores.problems.append(f"{pair.prediction} has the same value ({made.data.max():g}) everywhere.")
        tumour = None
        if pair.segmentation is not None:
            mask = load_volume(pair.segmentation, strict=True)
            if not mask.grid.same_as(truth.grid):
                raise VolumeError(f"{pair.segmentation} is not on the grid of {pair.reference}.")
            tumour = mask.data > 0
            if not tumour.any():
                scores.problems.append(f"{pair.segmentation} is empty: tumour scores of {pair.subject} mean nothing.")
        scores.values = image_scores(made.data, truth.data, tumour, truth.grid.lps_spacing, border)
    except VolumeError as error:
        scores.problems.append(str(error))
    return scores


def score_all(pairs: Sequence[Pair], border: Border = "keep", jobs: int = 2) -> list[Scores]:
    """`score_pair` over many, in `jobs` processes."""
    if jobs == 1 or len(pairs) == 1:
        return [score_pair(p, border) for p in pairs]
    with ProcessPoolExecutor(min(jobs, len(pairs))) as pool:
        return list(pool.map(score_pair, pairs, [border] * len(pairs)))


def score_segmentations(prediction: Path, reference: Path) -> list[Scores]:
    """Dice and surface distances of predicted label maps, matched by `<subject>-seg` names.

    Raises:
        UsageError: no pair is found.
    """
    made, real = find_segmentations(prediction), find_segmentations(reference)
    results = []
    for subject in sorted(made):
        scores = Scores(subject, "seg")
        try:
            if subject not in real:
                raise VolumeError(f"{made[subject]} has no counterpart in {reference}.")
            a, b = load_volume(made[subject], strict=True), load_volume(real[subject], strict=True)
            if not a.grid.same_as(b.grid):
                raise VolumeError(f"{made[subject]} is not on the grid of {real[subject]}.")
            scores.values = segmentation_scores(a.data, b.data, b.grid.lps_spacing)
        except VolumeError as error:
            scores.problems.append(str(error))
        results.append(scores)
    if not results:
        raise UsageError(f"{prediction} holds no <subject>-seg.nii.gz.")
    return results


# ---------------------------------------------------------------- summaries


def summarise(scores: Sequence[Scores]) -> dict[str, dict[str, dict[str, float]]]:
    """Per group (`all`, each sequence, each tumour type) and metric: n, mean, sd, median and quartiles.

    Values that are not finite (no tumour, identical volumes) are counted out of n.
    """
    groups: dict[str, Callable[[Scores], bool]] = {"all": lambda _: True}
    for modality in MODALITIES:
        groups[modality] = lambda s, m=modality: s.modality == m  # type: ignore[misc]
    for kind in sorted({s.tumour_type for s in scores}):
        groups[f"type {kind}"] = lambda s, k=kind: s.tumour_type == k  # type: ignore[misc]
    names = list(dict.fromkeys(n for s in scores for n in s.values))
    summary = {}
    for group, belongs in groups.items():
        members = [s for s in scores if belongs(s) and s.values]
        if members:
            summary[group] = {n: _describe([s.values.get(n, math.nan) for s in members]) for n in names}
    return summary


def compare(first: Sequence[Scores], second: Sequence[Scores], seed: int = 0) -> dict[str, dict[str, float]]:
    """Paired comparison, metric by metric, over the volumes that both have.

    Returns:
        Per metric: `n` pairs, mean `difference` (first minus second), `low` and `high` of its 95 % bootstrap interval
        (subjects are drawn, not volumes, since a subject's sequences go together), `p` of Wilcoxon's signed-rank test
        on the subjects' means, for the same reason.
    """
    from scipy.stats import wilcoxon

    others = {(s.subject, s.modality): s.values for s in second}
    random = np.random.default_rng(seed)
    result = {}
    for name in dict.fromkeys(n for s in first for n in s.values):
        by_subject: dict[str, list[float]] = {}
        for s in first:
            value = s.values.get(name, math.nan) - others.get((s.subject, s.modality), {}).get(name, math.nan)
            if math.isfinite(value):
                by_subject.setdefault(s.subject, []).append(value)
        if not by_subject:
            continue
        sums = np.array([[sum(v), len(v)] for v in by_subject.values()])
        drawn = sums[random.integers(0, len(sums), (_BOOTSTRAPS, len(sums)))].sum(axis=1)
        low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
        differences = np.array([d for v in by_subject.values() for d in v])
        each = sums[:, 0] / sums[:, 1]
        p = float(wilcoxon(each).pvalue) if each.any() and len(each) > 1 else 1.0
        result[name] = {"n": len(differences), "difference": float(differences.mean()), "low": float(low),
                        "high": float(high), "p": p}  # fmt: skip
    return result


def table(summary: Mapping[str, Mapping[str, Mapping[str, float]]], title: str = "") -> str:
    """The summary's means as a Markdown table, one line per group."""
    rows = [[title or "mean", "n", *COLUMNS]]
    for group, metrics in summary.items():
        cells = [f"{metrics[c]['mean']:.{d}f}" if c in metrics else "-" for c, d in COLUMNS.items()]
        count = max(int(m["n"]) for m in metrics.values())
        rows.append([group, str(count), *cells])
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of ready-made cells, the header first."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def comparison_table(comparison: Mapping[str, Mapping[str, float]], against: str) -> str:
    """`compare` as a Markdown table."""
    lines = [f"| difference to {against} | n | mean | 95 % interval | p (Wilcoxon) |", "|---|---|---|---|---|"]
    for name, c in comparison.items():
        interval = f"{c['low']:+.4f} to {c['high']:+.4f}"
        lines.append(f"| {name} | {c['n']:.0f} | {c['difference']:+.4f} | {interval} | {c['p']:.2g} |")
    return "\n".join(lines)


def segmentation_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Means of `segmentation_scores` as a Markdown table, one line per metric."""
    lines = ["| segmentation | n | mean | sd |", "|---|---|---|---|"]
    lines += [f"| {name} | {m['n']:.0f} | {m['mean']:.3f} | {m['sd']:.3f} |" for name, m in metrics.items()]
    return "\n".join(lines)


def rows_csv(scores: Iterable[Scores]) -> str:
    """Tidy CSV: one row per subject, sequence and metric."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["subject", "tumour_type", "sequence", "metric", "value"])
    for s in scores:
        writer.writerows([s.subject, s.tumour_type, s.modality, name, repr(value)] for name, value in s.values.items())
    return buffer.getvalue()


def write_results(out: Path, scores: Sequence[Scores], summary: Mapping[str, Any], problems: Sequence[str]) -> None:
    """`scores.csv` and `summary.json` in `out`.

    Raises:
        OutputError: they cannot be written.
    """
    out.mkdir(parents=True, exist_ok=True)
    save_bytes(rows_csv(scores).encode(), out / "scores.csv")
    form = {**summary, "problems": list(problems)}
    save_bytes((json.dumps(_without_nan(form), indent=2) + "\n").encode(), out / "summary.json")


def _describe(values: Sequence[float]) -> dict[str, float]:
    finite = np.array([v for v in values if math.isfinite(v)])
    if not finite.size:
        return {"n": 0, **dict.fromkeys(("mean", "sd", "median", "q1", "q3"), math.nan)}
    q1, median, q3 = np.percentile(finite, [25, 50, 75])
    sd = float(finite.std(ddof=1)) if finite.size > 1 else 0.0
    return {"n": finite.size, "mean": float(finite.mean()), "sd": sd, "median": float(median), "q1": float(q1),
            "q3": float(q3)}  # fmt: skip


def _without_nan(form: Any) -> Any:
    if isinstance(form, Mapping):
        return {k: _without_nan(v) for k, v in form.items()}
    if isinstance(form, list | tuple):
        return [_without_nan(v) for v in form]
    if isinstance(form, np.integer):
        return int(form)
    return None if isinstance(form, float) and not math.isfinite(form) else form
