"""Summarise, compare and tabulate scores."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from app.core.atomic_io import save_bytes
from app.core.constants import MODALITIES
from app.evaluation.scoring import VolumeScores

#: Metrics of the printed table, in order, with the number of decimals.
COLUMNS: dict[str, int] = {
    "official_healthy": 4,
    "official_tumour": 4,
    "ssim_brain": 3,
    "ssim_tumour": 3,
    "psnr_brain": 2,
    "stripe_superior": 2,
}
#: Resamples of a bootstrap interval.
_BOOTSTRAPS = 10_000


def summarise(scores: Sequence[VolumeScores]) -> dict[str, dict[str, dict[str, float]]]:
    """Describe each metric per group: n, mean, sd, median and quartiles.

    Groups are `all`, each sequence and each tumour type. Values that are not finite (no tumour, identical volumes) do
    not count in n.
    """
    groups: dict[str, Callable[[VolumeScores], bool]] = {"all": lambda _: True}
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


def compare(
    first: Sequence[VolumeScores], second: Sequence[VolumeScores], seed: int = 0
) -> dict[str, dict[str, float]]:
    """Compare two sets in pairs, metric by metric, over the volumes that both have.

    A subject's sequences go together. So the bootstrap draws subjects, not volumes, and Wilcoxon's signed-rank test
    takes the subjects' means.

    Returns:
        Per metric: `n` pairs, mean `difference` (first minus second), `low` and `high` of its 95 % bootstrap interval,
        and Wilcoxon's `p`.
    """
    from scipy.stats import wilcoxon

    random = np.random.default_rng(seed)
    result = {}
    for name in dict.fromkeys(n for s in first for n in s.values):
        by_subject = _differences(first, second, name)
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


def _differences(first: Sequence[VolumeScores], second: Sequence[VolumeScores], name: str) -> dict[str, list[float]]:
    """Subtract one metric volume by volume; return finite differences per subject."""
    others = {(s.subject, s.modality): s.values for s in second}
    by_subject: dict[str, list[float]] = {}
    for s in first:
        value = s.values.get(name, math.nan) - others.get((s.subject, s.modality), {}).get(name, math.nan)
        if math.isfinite(value):
            by_subject.setdefault(s.subject, []).append(value)
    return by_subject


def table(summary: Mapping[str, Mapping[str, Mapping[str, float]]], title: str = "") -> str:
    """Format the summary's means as a Markdown table, one line per group."""
    rows = [[title or "mean", "n", *COLUMNS]]
    for group, metrics in summary.items():
        cells = [f"{metrics[c]['mean']:.{d}f}" if c in metrics else "-" for c, d in COLUMNS.items()]
        count = max(int(m["n"]) for m in metrics.values())
        rows.append([group, str(count), *cells])
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Format cells as a Markdown table, the header first."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def comparison_table(comparison: Mapping[str, Mapping[str, float]], against: str) -> str:
    """Format the result of `compare` as a Markdown table."""
    lines = [f"| difference to {against} | n | mean | 95 % interval | p (Wilcoxon) |", "|---|---|---|---|---|"]
    for name, c in comparison.items():
        interval = f"{c['low']:+.4f} to {c['high']:+.4f}"
        lines.append(f"| {name} | {c['n']:.0f} | {c['difference']:+.4f} | {interval} | {c['p']:.2g} |")
    return "\n".join(lines)


def segmentation_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Format means of `segmentation_scores` as a Markdown table, one line per metric."""
    lines = ["| segmentation | n | mean | sd |", "|---|---|---|---|"]
    lines += [f"| {name} | {m['n']:.0f} | {m['mean']:.3f} | {m['sd']:.3f} |" for name, m in metrics.items()]
    return "\n".join(lines)


def rows_csv(scores: Iterable[VolumeScores]) -> str:
    """Format scores as tidy CSV: one row per subject, sequence and metric."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["subject", "tumour_type", "sequence", "metric", "value"])
    for s in scores:
        writer.writerows([s.subject, s.tumour_type, s.modality, name, repr(value)] for name, value in s.values.items())
    return buffer.getvalue()


def write_results(
    out: Path, scores: Sequence[VolumeScores], summary: Mapping[str, Any], problems: Sequence[str]
) -> None:
    """Write `scores.csv` and `summary.json` into `out`.

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
