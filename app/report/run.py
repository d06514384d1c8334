"""The pages of a synthesis run and of an evaluation, from what those left on disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.constants import MODALITIES, Modality
from app.errors import VolumeError
from app.report.html import Page, SubjectEntry, Table, distribution_plot, render
from app.report.picture import picture
from app.volume import load_volume

log = logging.getLogger(__name__)

#: Beyond this many subjects only those with warnings, and the first ones, are pictured, to keep the page small.
MOST_PICTURES = 140


def run_page(record: Mapping[str, Any]) -> bytes:
    """The page of a run record (see `app.batch`); pictures are drawn from the files that it names."""
    subjects: Sequence[Mapping[str, Any]] = record["subjects"]
    counts = {s: sum(o["status"] == s for o in subjects) for s in ("made", "kept", "complete", "failed")}
    model = record["model"] or {"name": "none", "sha256": ""}
    facts = {
        "subjects": ", ".join(f"{n} {s}" for s, n in counts.items()),
        "model": f"{model['name']} (sha256 {model['sha256'][:16]})",
        "runtime": record["runtime"] or "numpy on cpu",
        "started": record["started"],
        "finished": record["finished"],
        "exit code": str(record["exit_code"]),
        "tetrad": record["tetrad"],
    }
    page = Page(
        title="Tetrad: synthesised sequences",
        facts=facts,
        failures=[f"{o['subject']}: {o['error']}" for o in subjects if o["status"] == "failed"],
        warnings=[*record["notes"], *(w for o in subjects for w in o["warnings"])],
    )
    done = sorted((o for o in subjects if o["status"] == "made"), key=lambda o: not o["warnings"])
    pictured = {id(o) for o in done[:MOST_PICTURES]}
    for outcome in subjects:
        if outcome["status"] != "made":
            continue
        for output in outcome["outputs"]:
            caption = f"{output['target']} made by {output['model']} on {output['device']}, {outcome['seconds']:.1f} s"
            jpeg = b""
            if id(outcome) in pictured:
                jpeg = draw({m: Path(f) for m, f in outcome["inputs"].items()}, output["target"], Path(output["path"]))
            page.subjects.append(SubjectEntry(outcome["subject"], caption, jpeg))
    return render(page)


def evaluation_page(
    scores: Sequence[Any],
    summary: Mapping[str, Mapping[str, Mapping[str, float]]],
    problems: Sequence[str],
    columns: Mapping[str, int],
    pairs: Sequence[Any],
    facts: Mapping[str, str],
) -> bytes:
    """The page of an evaluation.

    Args:
        scores: `app.evaluate.Scores`, one per volume.
        summary: of `app.evaluate.summarise`.
        columns: metrics that are shown, with decimals.
        pairs: `app.evaluate.Pair`, one per volume.
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
    for pair in pairs[:MOST_PICTURES]:
        values = by_name[pair.subject, pair.modality].values
        caption = ", ".join(f"{n} {values[n]:.{columns[n]}f}" for n in names if n in values)
        jpeg = draw(pair.others, pair.modality, pair.prediction, pair.reference, pair.segmentation)
        page.subjects.append(SubjectEntry(f"{pair.subject} {pair.modality}", caption, jpeg))
    return render(page)


def _value(scores: Any, name: str) -> float:
    return float(scores.values.get(name, float("nan")))


def draw(
    inputs: Mapping[Modality, Path],
    target: Modality,
    synthesis: Path,
    truth: Path | None = None,
    segmentation: Path | None = None,
) -> bytes:
    """A JPEG of one subject; empty (and said) where a file has become unreadable."""
    try:
        return picture(
            {m: load_volume(f).data for m, f in inputs.items()},
            target,
            load_volume(synthesis, strict=True).data,
            None if truth is None else load_volume(truth).data,
            None if segmentation is None else load_volume(segmentation, strict=True).data > 0,
            kind="jpeg",
        )
    except VolumeError as error:
        log.warning("No picture: %s", error)
        return b""
