"""The pages of a synthesis run and of an evaluation, from what those left on disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.constants import MODALITIES, Modality
from app.errors import VolumeError
from app.files import save_bytes
from app.report.html import Page, SubjectEntry, Table, distribution_plot, render
from app.report.picture import picture, shrink
from app.volume import load_volume

log = logging.getLogger(__name__)

#: Beyond this many subjects only those with warnings, and the first ones, are pictured, to keep the page small.
MOST_PICTURES = 140


def write_run_report(record: Mapping[str, Any], page_path: Path) -> None:
    """The page of a run record (see `app.batch`), and one PNG per synthesised sequence in `pictures/` beside it.

    Raises:
        OutputError: they cannot be written.
    """
    subjects: Sequence[Mapping[str, Any]] = record["subjects"]
    counts = {s: sum(o["status"] == s for o in subjects) for s in ("made", "kept", "complete", "failed")}
    model = record["model"] or {"name": "none", "sha256": "", "specialists": {}}
    models = [f"{model['name']} (sha256 {model['sha256'][:16]})"]
    models += [f"{m} by {s['name']} (sha256 {s['sha256'][:16]})" for m, s in model["specialists"].items()]
    facts = {
        "subjects": ", ".join(f"{n} {s}" for s, n in counts.items()),
        "model": "; ".join(models),
        "runtime": record["runtime"],
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
    # Of what was kept, only where an earlier record says what it was made of.
    told = [o for o in subjects if o["status"] in {"made", "kept"} and o["inputs"]]
    done = sorted(told, key=lambda o: not o["warnings"])
    pictured = {id(o) for o in done[:MOST_PICTURES]}
    for outcome in told:
        for output in outcome["outputs"]:
            caption = f"{output['target']} made by {output['model']} on {output['device']}, {outcome['seconds']:.1f} s"
            caption += ", kept" * (outcome["status"] == "kept")
            jpeg = b""
            if id(outcome) in pictured:
                inputs = {m: Path(f) for m, f in outcome["inputs"].items()}
                jpeg = _draw(
                    outcome["subject"],
                    inputs,
                    output["target"],
                    Path(output["path"]),
                    page_path.parent,
                    confidence=Path(output["confidence"]) if "confidence" in output else None,
                )
            page.subjects.append(SubjectEntry(outcome["subject"], caption, jpeg))
    save_bytes(render(page), page_path)


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
        scores: `app.evaluate.Scores`, one per volume.
        summary: of `app.evaluate.summarise`.
        columns: metrics that are shown, with decimals.
        pairs: `app.evaluate.Pair`, one per volume.
        calibration: header and rows of `app.calibrate.rows`, and a PNG of its plot.
        downstream: tables of `app.downstream.downstream_rows`.

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
    page.tables += [Table("The tumour as the 3D judge finds it", header, body) for header, *body in downstream]
    if calibration is not None:
        (header, *body), page.calibration = calibration
        page.tables.append(Table("Confidence: expected and observed error", header, body))
    for pair in pairs[:MOST_PICTURES]:
        values = by_name[pair.subject, pair.modality].values
        caption = ", ".join(f"{n} {values[n]:.{columns[n]}f}" for n in names if n in values)
        jpeg = _draw(
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


def _draw(
    subject: str,
    inputs: Mapping[Modality, Path],
    target: Modality,
    synthesis: Path,
    folder: Path,
    truth: Path | None = None,
    segmentation: Path | None = None,
    confidence: Path | None = None,
) -> bytes:
    """Writes `pictures/<subject>-<target>.png`, returns a small JPEG; empty (and said) where a file is unreadable."""
    try:
        png = picture(
            {m: load_volume(f).data for m, f in inputs.items()},
            target,
            load_volume(synthesis, strict=True).data,
            None if truth is None else load_volume(truth).data,
            None if segmentation is None else load_volume(segmentation, strict=True).data > 0,
            title=subject,
            confidence=None if confidence is None else load_volume(confidence, strict=True).data,
        )
    except (VolumeError, ValueError) as error:
        log.warning("No picture of %s: %s", subject, error)
        return b""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    save_bytes(png, folder / "pictures" / f"{subject}-{target}.png")
    return shrink(png)
