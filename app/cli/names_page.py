"""Write the documentation's page on the names that are understood."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from app.core.constants import DISPLAY_NAMES, MODALITIES
from app.data.naming import tables
from app.data.naming.collections import COLLECTIONS

_PAGE: Final = """# Names that are understood

This page is made from the code's own tables: `make options` writes it, a test compares both.

The whole name of a file is read, in any case of letters: the subject, the sequence, and what was done to the image.
A name that could mean two things is not understood. Where such a file lies beside a missing sequence, `--on-error skip`
and `stop` refuse the subject and name the file; `fallback` warns. `python -m app check` shows what each file is taken
for.

- **Teach a name:** `--name 't1c=*_KERN.nii.gz'` says that these files are the T1c of the subject named by the `*`. With
  a slash the pattern is of the path below the input (`t1c=post/*.nii.gz`). `--name 'none=*_old.nii.gz'` passes files
  over.
- **Subject:** the text before the sequence; without one, the folder. Folders that hold one sequence (`P001/T1/`) or
  only images (`P001/NIFTI/`) are no part of it. A time point (`Patient-001/week-000/`) bears its patient's name too.
- **Two subjects of one name** in different folders are refused. `--name-from-folders` keeps them apart, as
  `siteA_sub-01`.
- **Several versions** of one scan: the one that most sequences have is used, without skull before others.
- **Several runs** of one sequence: the subject is refused, unless `--run first` or `--run last` is given.
- **An image that Tetrad made** (its header says so) is no scan.

"""


def names_page() -> str:
    """Write the page on names, in Markdown."""
    return "".join([_PAGE, "## Collections and tools\n\n", *_collections(), "\n## Words\n\n", *_words()])


def _collections() -> Iterable[str]:
    sequences = " | ".join(DISPLAY_NAMES[m] for m in MODALITIES)
    yield f"| names of | {sequences} | passed over | note |\n|---|---|---|---|---|---|---|\n"
    for collection in COLLECTIONS:
        files = {m: f"`{path}`" for path, m in collection.files.items()}
        cells = [files.get(m, "") for m in MODALITIES]
        others = ", ".join(f"`{other}`" for other in collection.others)
        yield f"| {collection.title} | {' | '.join(cells)} | {others} | {collection.note} |\n"


def _words() -> Iterable[str]:
    rows = (
        ("a T1 with contrast agent", tables.CONTRAST_WORDS),
        ("a T1 without", tables.NATIVE_WORDS),
        ("a T2-FLAIR", tables.FLAIR_WORDS),
        ("no skull", tables.STRIPPED_WORDS),
        ("another version of a scan", tables.VERSION_WORDS),
        ("a version that others go before", tables.RAW_WORDS),
        ("nothing for us", tables.NEUTRAL_WORDS),
        ("none of the four sequences", tables.OTHER_WORDS),
        ("folders that are not entered", tables.SYSTEM_FOLDERS | tables.NOT_RAW_FOLDERS),
        ("folders that say nothing", tables.CONTAINER_FOLDERS),
    )
    yield "| meaning | words |\n|---|---|\n"
    for meaning, words in rows:
        yield f"| {meaning} | {' '.join(f'`{word}`' for word in sorted(words))} |\n"
