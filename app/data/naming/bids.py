"""Read BIDS names, and decide whether a T1w was acquired with contrast agent."""

from __future__ import annotations

import re
from dataclasses import replace

from app.data.naming import tables as words
from app.data.naming.reading import NameReading

_BIDS = re.compile(
    r"^(?P<subject>sub-[^_]+)(?:_(?P<session>ses-[^_]+))?(?P<entities>(?:_[A-Za-z]+-[^_]*)*)_(?P<suffix>[A-Za-z0-9]+)$"
)
_BIDS_CONTRAST = re.compile(
    r"gad|gd|gado|contrast|postc|post$|^post|t1(c|ce|post)$|^(ce|c|ce-?mprage|cet1w?|km|inj)$|^enh", re.IGNORECASE
)
_BIDS_NATIVE = re.compile(
    r"^(pre|no|non|without|un)-?_?(gad|gd|contrast|enh|ce)|^(none|no|native|plain)$|^pre$|pre(gad|gd|contrast)",
    re.IGNORECASE,
)
_BIDS_TREATMENT = re.compile(r"post-?(op|surg|rt|radio|chemo|treat)", re.IGNORECASE)


def read_bids(stem: str) -> NameReading | None:
    """Read a BIDS name; None where it is none, or its suffix is not known."""
    match = _BIDS.match(stem)
    if match is None:
        return None
    suffix, subject, session = match["suffix"].lower(), match["subject"], match["session"] or ""
    entities = dict(e.split("-", 1) for e in match["entities"].split("_") if e)
    if suffix not in {"t1w", "t2w", "flair"}:
        if suffix in words.OTHER_WORDS:
            return NameReading("other", f"{match['suffix']} is none of the four sequences", subject, session=session)
        return None
    if entities.get("part", "mag") != "mag":
        return NameReading("other", f"part-{entities['part']} is no magnitude image", subject, session=session)
    version = frozenset(f"{k}-{entities[k]}" for k in ("rec", "desc", "space", "res", "proc") if k in entities)
    reading = NameReading(
        "sequence", f"BIDS {match['suffix']}", subject, session=session, version=version,
        run=entities.get("run", ""), sure=not version,
    )  # fmt: skip
    if suffix != "t1w":
        return replace(reading, sequence="t2w" if suffix == "t2w" else "t2f")
    return _bids_t1(reading, entities)


def _bids_t1(reading: NameReading, entities: dict[str, str]) -> NameReading:
    """Decide whether a BIDS T1w was acquired with contrast agent."""
    if (agent := entities.get("ce")) is not None:
        if _BIDS_NATIVE.search(agent):
            return replace(reading, sequence="t1n", why=f"BIDS T1w with ce-{agent}", sure=False)
        return replace(reading, sequence="t1c", why=f"BIDS T1w with ce-{agent}")
    for key in ("acq", "rec", "desc"):
        value = _BIDS_TREATMENT.sub("", entities.get(key, ""))
        if _BIDS_NATIVE.search(value):
            return replace(reading, sequence="t1n", why=f"BIDS T1w with {key}-{entities[key]}", sure=False)
        if _BIDS_CONTRAST.search(value):
            return replace(reading, sequence="t1c", why=f"BIDS T1w; {key}-{entities[key]} marks contrast", sure=False)
    return replace(reading, sequence="t1n")
