"""The pages of a synthesis run and of an evaluation, from what those left on disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from app.core.atomic_io import save_bytes
from app.report.figures import MOST_PICTURES, draw_files
from app.report.html import Page, SubjectEntry, render

log = logging.getLogger(__name__)


def write_run_report(record: Mapping[str, Any], page_path: Path) -> None:
    """The page of a run record (see `app.batch.run`), and one PNG per synthesised sequence in `pictures/` beside it.

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
                jpeg = draw_files(
                    outcome["subject"],
                    inputs,
                    output["target"],
                    Path(output["path"]),
                    page_path.parent,
                    confidence=Path(output["confidence"]) if "confidence" in output else None,
                )
            page.subjects.append(SubjectEntry(outcome["subject"], caption, jpeg))
    save_bytes(render(page), page_path)
