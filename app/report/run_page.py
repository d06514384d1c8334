"""Write the page of a synthesis run from its record and the files on disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from app.core.atomic_io import save_bytes
from app.core.constants import SEGMENTATION
from app.core.errors import VolumeError
from app.preprocessing.expected_quality import in_brief
from app.report.figures import MOST_PICTURES, draw_files, draw_segmentation, shrink
from app.report.html import Page, SubjectEntry, render
from app.report.plotting import figure_class
from app.report.viewer import write_files_view

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
        subjects=_entries(outcomes, page_path.parent, 0 if lack else MOST_PICTURES, bool(record["config"].get("view"))),
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


def _entries(outcomes: Sequence[Mapping[str, Any]], folder: Path, pictures: int, views: bool) -> list[SubjectEntry]:
    """Make an entry per output; those with warnings are the first of so many to have pictures, and views."""
    # Of what was kept, only where an earlier record says what it was made of.
    known = [o for o in outcomes if o["status"] in {"made", "kept"} and o["inputs"]]
    pictured = {id(o) for o in sorted(known, key=lambda o: not o["warnings"])[:pictures]}
    entries = []
    for o in known:
        for output in o["outputs"]:
            view = _view(o, output, folder) if views and id(o) in pictured else ""
            entries.append(_entry(o, output, folder, id(o) in pictured, view))
    return entries


def _entry(outcome: Mapping[str, Any], output: Mapping[str, Any], folder: Path, draw: bool, view: str) -> SubjectEntry:
    caption = f"{output['target']} made by {output['model']} on {output['device']}, {outcome['seconds']:.1f} s"
    caption += ", kept" * (outcome["status"] == "kept")
    caption += f"; {brief}" if (brief := in_brief(output.get("expected", {}))) else ""
    return SubjectEntry(outcome["subject"], caption, _draw(outcome, output, folder) if draw else b"", view)


def _view(outcome: Mapping[str, Any], output: Mapping[str, Any], folder: Path) -> str:
    """Write the page to scroll through an output, and give its place; empty where there is none."""
    if "view" in output:
        return quote(os.path.relpath(output["view"], folder))
    if output["target"] == SEGMENTATION:
        return ""
    name = f"{outcome['subject']}-{output['target']}"
    place = folder / "views" / f"{name}-view.html"
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        inputs = {m: Path(f) for m, f in outcome["inputs"].items()}
        write_files_view(inputs, output["target"], Path(output["path"]), name, place)
    except (VolumeError, ValueError) as error:
        log.warning("No view of %s: %s", name, error)
        return ""
    return quote(f"views/{place.name}")


def _draw(outcome: Mapping[str, Any], output: Mapping[str, Any], folder: Path) -> bytes:
    if "picture" in output:
        # Of an exam as scanned, whose inputs lie on several grids.
        picture = Path(output["picture"])
        return shrink(picture.read_bytes()) if picture.is_file() else b""
    inputs = {m: Path(f) for m, f in outcome["inputs"].items()}
    if output["target"] == SEGMENTATION:
        return draw_segmentation(outcome["subject"], inputs, Path(output["path"]), folder)
    confidence = Path(output["confidence"]) if "confidence" in output else None
    return draw_files(outcome["subject"], inputs, output["target"], Path(output["path"]), folder, confidence=confidence)
