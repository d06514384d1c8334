"""The page of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.core.atomic_io import save_bytes
from app.core.constants import MODALITIES
from app.report.figures import MOST_PICTURES, draw_files
from app.report.html import Page, SubjectEntry, Table, distribution_plot, render


def write_evaluation_report(
    scores: Sequence[Any],
    summary: Mapping[str, Mapping[str, Mapping[str, float]]],
    problems: Sequence[str],
    columns: Mapping[str, int],
    pairs: Sequence[Any],
    facts: Mapping[str, str],
    page_path: Path,
    calibration: tuple[Sequence[Sequence[str]], bytes] | None = None,
    downstream: Sequence[Sequence[Sequence[str]]] = (),
) -> None:
    """The page of an evaluation, and one PNG per volume in `pictures/` beside it.

    Args:
        scores: `app.evaluation.scoring.VolumeScores`, one per volume.
        summary: of `app.evaluation.statistics.summarise`.
        columns: metrics that are shown, with decimals.
        pairs: `app.evaluation.scoring.Pair`, one per volume.
        calibration: header and rows of `app.evaluation.confidence_calibration.rows`, and a PNG of its plot.
        downstream: tables of `app.evaluation.downstream.downstream_rows`.

    Raises:
        OutputError: they cannot be written.
    """
    names = list(columns)
    overall = [
        [group, *(f"{metrics[n]['mean']:.{columns[n]}f} ± {metrics[n]['sd']:.{columns[n]}f}" for n in names)]
        for group, metrics in summary.items()
    ]
    each = [[f"{s.subject} {s.modality}", *(f"{_value(s, n):.{columns[n]}f}" for n in names)] for s in scores]
    by_name = {(s.subject, s.modality): s for s in scores}
    page = Page(
        title="Tetrad: evaluation",
        facts=facts,
        warnings=list(problems),
        tables=[Table("Mean ± standard deviation", ["", *names], overall), Table("Each volume", ["", *names], each)],
        plot=distribution_plot(
            {n: {m: [_value(s, n) for s in scores if s.modality == m] for m in MODALITIES} for n in names}
        ),
    )
    page.tables += [Table("The tumour as the 3D segmenter finds it", header, body) for header, *body in downstream]
    if calibration is not None:
        (header, *body), page.calibration = calibration
        page.tables.append(Table("Confidence: expected and observed error", header, body))
    for pair in pairs[:MOST_PICTURES]:
        values = by_name[pair.subject, pair.modality].values
        caption = ", ".join(f"{n} {values[n]:.{columns[n]}f}" for n in names if n in values)
        jpeg = draw_files(
            pair.subject,
            pair.others,
            pair.modality,
            pair.prediction,
            page_path.parent,
            pair.reference,
            pair.segmentation,
        )
        page.subjects.append(SubjectEntry(f"{pair.subject} {pair.modality}", caption, jpeg))
    save_bytes(render(page), page_path)


def _value(scores: Any, name: str) -> float:
    return float(scores.values.get(name, float("nan")))
