"""Write the page of a synthesis run from its record and the files on disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.core.atomic_io import save_bytes
from app.core.constants import SEGMENTATION
from app.report.figures import MOST_PICTURES, draw_files, draw_segmentation
from app.report.html import Page, SubjectEntry, render
from app.report.plotting import figure_class

log = logging.getLogger(__name__)


def write_run_report(record: Mapping[str, Any], page_path: Path) -> None:
    """Write the page of a run, and one PNG per synthesised sequence in `pictures/` beside it.

    Args:
        record: as `app.batch.run_record` writes it.

    Raises:
        OutputError: they cannot be written.
    """
    outcomes: Sequence[Mapping[str, Any]] = record["subjects"]
    lack = _reason_for_no_pictures(page_path.parent)
    page = Page(
        title=f"Tetrad: {_kind_of(outcomes)}",
        facts=_facts(record),
        failures=[f"{o['subject']}: {o['error']}" for o in outcomes if o["status"] == "failed"],
        warnings=[*lack, *record["notes"], *(w for o in outcomes for w in o["warnings"])],
        subjects=_entries(outcomes, page_path.parent, 0 if lack else MOST_PICTURES),
    )
    save_bytes(render(page), page_path)


def _kind_of(outcomes: Sequence[Mapping[str, Any]]) -> str:
    targets = {output["target"] for outcome in outcomes for output in outcome["outputs"]}
    return "segmented tumours" if SEGMENTATION in targets else "synthesised sequences"


def _reason_for_no_pictures(folder: Path) -> list[str]:
    """Say why nothing can be drawn, in the log and in one sentence for the page; empty where it can.

    Args:
        folder: of the page; it can be written to.
    """
    try:
        figure_class(folder)
    except (OSError, ImportError, MemoryError) as error:
        reason = f"the page has no pictures, since matplotlib could not be loaded ({error or type(error).__name__})."
        log.warning("%s", reason)
        return [reason]
    return []


def _facts(record: Mapping[str, Any]) -> dict[str, str]:
    counts = {s: sum(o["status"] == s for o in record["subjects"]) for s in ("made", "kept", "complete", "failed")}
    model = record["model"] or {"name": "none", "sha256": "", "specialists": {}}
    models = [f"{model['name']} (sha256 {model['sha256'][:16]})"]
    models += [f"{m} by {s['name']} (sha256 {s['sha256'][:16]})" for m, s in model["specialists"].items()]
    return {
        "subjects": ", ".join(f"{n} {s}" for s, n in counts.items()),
        "model": "; ".join(models),
        "runtime": record["runtime"],
        "started": record["started"],
        "finished": record["finished"],
        "exit code": str(record["exit_code"]),
        "tetrad": record["tetrad"],
    }


def _entries(outcomes: Sequence[Mapping[str, Any]], folder: Path, pictures: int) -> list[SubjectEntry]:
    """Make an entry per output; those with warnings are the first of so many to have pictures."""
    # Of what was kept, only where an earlier record says what it was made of.
    known = [o for o in outcomes if o["status"] in {"made", "kept"} and o["inputs"]]
    pictured = {id(o) for o in sorted(known, key=lambda o: not o["warnings"])[:pictures]}
    return [_entry(o, output, folder, draw=id(o) in pictured) for o in known for output in o["outputs"]]


def _entry(outcome: Mapping[str, Any], output: Mapping[str, Any], folder: Path, draw: bool) -> SubjectEntry:
    caption = f"{output['target']} made by {output['model']} on {output['device']}, {outcome['seconds']:.1f} s"
    caption += ", kept" * (outcome["status"] == "kept")
    return SubjectEntry(outcome["subject"], caption, _draw(outcome, output, folder) if draw else b"")


def _draw(outcome: Mapping[str, Any], output: Mapping[str, Any], folder: Path) -> bytes:
    inputs = {m: Path(f) for m, f in outcome["inputs"].items()}
    if output["target"] == SEGMENTATION:
        return draw_segmentation(outcome["subject"], inputs, Path(output["path"]), folder)
    confidence = Path(output["confidence"]) if "confidence" in output else None
    return draw_files(outcome["subject"], inputs, output["target"], Path(output["path"]), folder, confidence=confidence)
