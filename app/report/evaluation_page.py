"""Write the page of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from app.core.atomic_io import save_bytes
from app.core.constants import MODALITIES
from app.report.figures import MOST_PICTURES, draw_files
from app.report.html import Page, SubjectEntry, Table, distribution_plot, render

#: Cells of a table: the header and the rows.
TableRows: TypeAlias = Sequence[Sequence[str]]


def write_evaluation_report(
    scores: Sequence[Any],
    summary: Mapping[str, Mapping[str, Mapping[str, float]]],
    problems: Sequence[str],
    columns: Mapping[str, int],
    pairs: Sequence[Any],
    facts: Mapping[str, str],
    page_path: Path,
    calibration: tuple[TableRows, bytes] | None = None,
    downstream: Sequence[TableRows] = (),
) -> None:
    """Write the page of an evaluation, and one PNG per volume in `pictures/` beside it.

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
    page = Page(
        title="Tetrad: evaluation",
        facts=facts,
        warnings=list(problems),
        tables=_score_tables(scores, summary, columns),
        plot=distribution_plot(
            {n: {m: [_value(s, n) for s in scores if s.modality == m] for m in MODALITIES} for n in columns}
        ),
    )
    page.tables += [Table("The tumour as a segmenter finds it", header, body) for header, *body in downstream]
    if calibration is not None:
        (header, *body), page.calibration = calibration
        page.tables.append(Table("Confidence: expected and observed error", header, body))
    values = {(s.subject, s.modality): s.values for s in scores}
    for pair in pairs[:MOST_PICTURES]:
        page.subjects.append(_entry(pair, values[pair.subject, pair.modality], columns, page_path.parent))
    save_bytes(render(page), page_path)


def _score_tables(
    scores: Sequence[Any], summary: Mapping[str, Mapping[str, Mapping[str, float]]], columns: Mapping[str, int]
) -> list[Table]:
    overall = [
        [group, *(f"{metrics[n]['mean']:.{d}f} ± {metrics[n]['sd']:.{d}f}" for n, d in columns.items())]
        for group, metrics in summary.items()
    ]
    each = [[f"{s.subject} {s.modality}", *(f"{_value(s, n):.{d}f}" for n, d in columns.items())] for s in scores]
    return [Table("Mean ± standard deviation", ["", *columns], overall), Table("Each volume", ["", *columns], each)]


def _entry(pair: Any, values: Mapping[str, float], columns: Mapping[str, int], folder: Path) -> SubjectEntry:
    caption = ", ".join(f"{n} {values[n]:.{d}f}" for n, d in columns.items() if n in values)
    jpeg = draw_files(
        pair.subject, pair.others, pair.modality, pair.prediction, folder, pair.reference, pair.segmentation
    )
    return SubjectEntry(f"{pair.subject} {pair.modality}", caption, jpeg)


def _value(scores: Any, name: str) -> float:
    return float(scores.values.get(name, float("nan")))
