"""Merge the records of a run's parts into one, as one run would have written it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from app.batch.run_record import write_page
from app.core.atomic_io import save_bytes
from app.core.errors import ExitCode, NothingToDo, UsageError

log = logging.getLogger(__name__)

_PART: Final = re.compile(r"tetrad-run-part(\d+)of(\d+)\.json")
#: What two parts of one run may differ in: where they ran, and how many threads they had.
_OWN: Final = frozenset({"part_id", "device", "jobs", "profile_file", "batch_size", "engine", "ray_address", "workers",
                         "worker_cores", "worker_gpus", "overwrite", "resume"})  # fmt: skip


def merge_records(folder: Path) -> int:
    """Write `tetrad-run.json` and its page from the records of all parts in a folder.

    Returns:
        The exit code that one run would have had: the worst of the parts'.

    Raises:
        NothingToDo: no part's record is there.
        UsageError: a part lacks or is damaged, or the parts are of different runs.
        OutputError: the record cannot be written.
    """
    records = _read_parts(folder)
    _check_one_run(records)
    record = merged(list(records.values()))
    path = folder / "tetrad-run.json"
    save_bytes((json.dumps(record, indent=2) + "\n").encode(), path)
    has_page = write_page(record, path.with_suffix(".html"))
    counts = {status: sum(s["status"] == status for s in record["subjects"]) for status in ("made", "kept", "failed")}
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    log.info(
        "%s%s: %d parts, %d subjects (%s).", path, ", .html" * has_page, len(records), len(record["subjects"]), told
    )
    return int(record["exit_code"])


def merged(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Make one record of those of all parts, in their order."""
    first = records[0]
    return {
        **first,
        "started": min(record["started"] for record in records),
        "finished": max(record["finished"] for record in records),
        "exit_code": _worst([int(record["exit_code"]) for record in records]),
        "config": {**first["config"], "part_id": 0, "num_parts": 1},
        "model": first["model"],
        "runtime": "; ".join(dict.fromkeys(record["runtime"] for record in records)),
        # Each part looks at the whole input.
        "notes": list(dict.fromkeys(note for record in records for note in record["notes"])),
        "subjects": sorted((s for record in records for s in record["subjects"]), key=lambda s: str(s["subject"])),
        "merged_parts": len(records),
    }


def _worst(codes: Sequence[int]) -> int:
    """Choose the code of the run: a part that was ended has subjects left, whatever else failed."""
    return max(codes, default=int(ExitCode.OK))


def _read_parts(folder: Path) -> dict[int, Mapping[str, Any]]:
    """Read the records of all parts, by their numbers.

    Raises:
        NothingToDo, UsageError: as `merge_records`.
    """
    matches = {path: match for path in sorted(folder.glob("*.json")) if (match := _PART.fullmatch(path.name))}
    if not matches:
        raise NothingToDo(f"{folder} holds no record of a part (tetrad-run-part0of8.json); name the --report-dir.")
    totals = sorted({int(match[2]) for match in matches.values()})
    if len(totals) > 1:
        raise UsageError(f"{folder} holds parts of {totals[0]} and of {totals[1]}; move those of the other run away.")
    paths = {int(match[1]): path for path, match in matches.items()}
    lacking = [str(part) for part in range(totals[0]) if part not in paths]
    if lacking:
        more = ", ..." * (len(lacking) > 10)
        raise UsageError(f"{folder} lacks the parts {', '.join(lacking[:10])}{more} of {totals[0]}; run them first.")
    return {part: _read(paths[part]) for part in sorted(paths)}


def _read(path: Path) -> Mapping[str, Any]:
    keys = {"started", "finished", "exit_code", "config", "model", "runtime", "notes", "subjects", "tetrad"}
    try:
        record = json.loads(path.read_bytes())
        if not keys <= set(record):
            raise ValueError("a part of it lacks")
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is no run record ({error}); run that part again.") from None
    return dict(record)


def _check_one_run(records: Mapping[int, Mapping[str, Any]]) -> None:
    """Compare the parts with the first one: a record has one model and one configuration.

    Raises:
        UsageError: one is of another run.
    """
    first = records[min(records)]
    for part, record in records.items():
        differing = [key for key in ("tetrad", "model") if record[key] != first[key]]
        differing += [key for key, value in record["config"].items() if first["config"].get(key) != value]
        differing = [key for key in differing if key not in _OWN]
        if differing:
            raise UsageError(
                f"part {part} was run with another {differing[0]} than part {min(records)}; run one of them again."
            )
