"""Complete subjects as normalised arrays on disk, so that an epoch never decodes gzip.

One `<subject>.npy` each: float16 (sequence, left, posterior, superior), normalized and cropped to the brain. It is
memory-mapped when read; a volume serves all three views. `index.json` holds the rest and is written last: a cache
without it is none.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from app.core.atomic_io import save_bytes
from app.core.constants import MODALITIES, VIEWS, Modality, View
from app.core.errors import UsageError
from app.core.types import MaskArray, VolumeArray
from app.data.cases import Case, tumour_type
from app.data.discovery import scan
from app.data.labels import load_labels
from app.data.loading import load_complete, needed_without
from app.data.nifti_reader import Volume
from app.data.segmentations import find_segmentations
from app.preprocessing.foreground import vote_foreground
from app.preprocessing.normalization import BACKGROUND, Intensity, Normalization, measure, normalize
from app.preprocessing.slices import SLICE_AXIS, stack_slices
from app.training.data.content_marks import gzip_end

log = logging.getLogger(__name__)

#: How models that are trained here see intensities unless a recipe says otherwise.
NORMALIZATION: Final = Normalization("volume", background=BACKGROUND)
_INDEX = "index.json"
_BEGUN = "begun.jsonl"
_SCHEMA = 4


@dataclass(frozen=True)
class CachedSubject:
    """One subject of a cache.

    Attributes:
        folder: where its arrays are.
        labelled: whether it has a segmentation.
        tumour_type: as the name states it, or `unknown`.
        intensities: how each sequence was normalized; without the one that was withheld.
        brain_pixels, tumour_pixels: per view, how many each slice has.
        start, shape: where the box of the brain begins in the volume, and the volume's extent; None in older caches.
        simulated: whether it is an exam of `simulate`.
    """

    name: str
    folder: Path
    labelled: bool
    tumour_type: str
    intensities: dict[Modality, Intensity]
    brain_pixels: dict[View, NDArray[np.int64]]
    tumour_pixels: dict[View, NDArray[np.int64]]
    start: tuple[int, int, int] | None = None
    shape: tuple[int, int, int] | None = None
    simulated: bool = field(default=False, kw_only=True)

    @property
    def normalized(self) -> NDArray[np.float16]:
        """Float16 (4, left, posterior, superior), challenge order, memory-mapped, cropped to the brain."""
        volumes: NDArray[np.float16] = mapped(self.folder / f"{self.name}.npy")
        return volumes

    @property
    def brain(self) -> MaskArray:
        """Bool, same box, memory-mapped: where most sequences are brighter than background."""
        brain: MaskArray = mapped(self.folder / f"{self.name}-brain.npy")
        return brain

    @property
    def labels(self) -> NDArray[np.uint8] | None:
        """Uint8 on the same box; None without a segmentation.

        Classes: 0 none, 1 necrotic core, 2 oedema, 3 enhancing tumour.
        """
        return mapped(self.folder / f"{self.name}-labels.npy") if self.labelled else None

    def slices(self, view: View, min_brain: int, min_tumour: int = 0) -> NDArray[np.int64]:
        """List the slices with at least so many brain and tumour pixels, by index."""
        return np.flatnonzero((self.brain_pixels[view] >= min_brain) & (self.tumour_pixels[view] >= min_tumour))


@lru_cache(maxsize=256)
def mapped(path: Path) -> Any:
    """Open an array on disk, read as it is looked at."""
    # Every map holds a file open, and a process may have a thousand: those used last stay.
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, EOFError, FileNotFoundError):
        raise UsageError(_damaged(path)) from None


def _damaged(path: Path) -> str:
    return f"{path} is damaged or missing; delete {path.parent}, or name another with --cache: it is made anew."


def build_cache(
    data: Path, folder: Path, normalization: Normalization = NORMALIZATION, withheld: Modality | None = None
) -> list[CachedSubject]:
    """Write the cache of all complete subjects of `data`, or read it if it exists.

    Args:
        folder: about 40 MB a subject.
        withheld: a sequence that subjects need not have; background stands in its place where they do as well.

    Raises:
        UsageError: fewer than two subjects can be used, or none where a sequence is withheld; or the folder holds a
            cache of other data, of another normalisation or of another version of Tetrad.
    """
    cases = scan(data).cases
    masks = find_segmentations(data, cases)
    files = (f for c in cases for m, f in c.files.items() if m != withheld)
    origin = {"schema": _SCHEMA, "data": _fingerprint(files, masks), "normalization": normalization.to_json()}
    if withheld is not None:
        origin["withheld"] = withheld
    index = folder / _INDEX
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        there = index.exists()
        if not there:
            done = _finished(folder / _BEGUN, origin)
            with (folder / _BEGUN).open("a", encoding="utf-8") as stream:
                for name, volumes in load_complete([c for c in cases if c.subject not in done], withheld):
                    done[name] = _write(name, volumes, masks.get(name), folder, normalization)
                    print(json.dumps(done[name]), file=stream, flush=True)
            _check_enough(len(done), data, withheld)
            save_bytes(json.dumps({**origin, "subjects": [done[n] for n in sorted(done)]}).encode(), index)
            (folder / _BEGUN).unlink()
    try:
        form = json.loads(index.read_text())
    except ValueError:
        raise UsageError(_damaged(index)) from None
    for key, what in (
        ("schema", "version of Tetrad"),
        ("withheld", "withheld sequence"),
        ("data", "data folder"),
        ("normalization", "normalisation"),
    ):
        if form.get(key) != origin.get(key):
            raise UsageError(f"{folder} holds a cache of another {what}; delete it or give another --cache.")
    subjects = [_read(entry, folder) for entry in form["subjects"]]
    if there:
        _tell_again(cases, subjects, folder)
    return subjects


def _check_enough(count: int, data: Path, withheld: Modality | None) -> None:
    if withheld is not None and count < 1:
        needed = ", ".join(needed_without(withheld))
        raise UsageError(
            f"no exam of {data} has {needed} that can be read; give a folder of exams that lack {withheld}."
        )
    if withheld is None and count < 2:
        raise UsageError(f"fewer than two complete subjects can be read from {data}; training needs more.")


def _tell_again(cases: Iterable[Case], subjects: Iterable[CachedSubject], folder: Path) -> None:
    """Names whom a cache that was made before leaves out, and who teaches no tumours there: that run said why."""
    labelled = {s.name: s.labelled for s in subjects}
    if out := [c.subject for c in cases if c.subject not in labelled]:
        log.info("%s was made without %s, which could not be used.", folder, ", ".join(out))
    if ill := [name for name, known in labelled.items() if not known]:
        log.info("%s has no usable segmentation of %s: images are taught by them, not tumours.", folder, ", ".join(ill))


def _finished(path: Path, origin: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What an interrupted build of the same cache had finished, by name; the list is there afterwards, to be gone on.

    Args:
        path: one JSON form a line: what the cache is of, then a subject each.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    head = json.dumps(origin) + "\n"
    # The line that was being written is not whole.
    kept = [line for line in lines[1:] if line.endswith("\n")] if lines[:1] == [head] else []
    save_bytes("".join([head, *kept]).encode(), path)
    if kept:
        log.info("%d subjects are in %s already.", len(kept), path.parent)
    return {form["name"]: form for form in map(json.loads, kept)}


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Runs that share a cache build it once: the others wait."""
    with (folder / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _fingerprint(files: Iterable[Path], masks: Mapping[str, Path]) -> str:
    """Changes when a file is added, removed or written anew.

    A copy of compressed files elsewhere has the same: they end with a checksum of their content. Of others the time
    counts, since reading them all would take as long as the cache.
    """
    every = sorted({*files, *masks.values()}, key=lambda f: (f.name, f))
    lines = [f"{f.name} {f.stat().st_size} {_content_mark(f)}" for f in every if f.exists()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _content_mark(file: Path) -> str:
    """Give what changes when a file is written anew: the checksum that gzip ends with, else its time."""
    end = gzip_end(file)
    return str(file.stat().st_mtime_ns) if end is None else end.hex()


def _write(
    name: str, volumes: dict[Modality, Volume], mask: Path | None, folder: Path, normalization: Normalization
) -> dict[str, Any]:
    arrays: dict[Modality, VolumeArray] = {m: v.data for m, v in volumes.items()}
    intensities = {m: measure(array, m, normalization) for m, array in arrays.items()}
    brain = vote_foreground(arrays)
    labels = load_labels(mask, next(iter(volumes.values())).grid, name)
    box = tuple(
        slice(int(filled[0]), int(filled[-1]) + 1)
        for filled in (np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3))
    )
    normalized = np.full((len(MODALITIES), *brain[box].shape), BACKGROUND, dtype=np.float16)
    for m, array in arrays.items():
        normalized[MODALITIES.index(m)] = normalize(array, intensities[m], normalization.background)[box]
    _save(normalized, folder / f"{name}.npy")
    _save(brain[box], folder / f"{name}-brain.npy")
    tumour = np.zeros_like(brain)
    if labels is not None:
        _save(labels[box], folder / f"{name}-labels.npy")
        tumour = labels > 0
    log.info("%s cached", name)
    return {
        "name": name,
        "labels": labels is not None,
        "intensities": {m: asdict(i) for m, i in intensities.items()},
        "brain_pixels": {v: stack_slices(brain[box], v).sum(axis=(1, 2)).tolist() for v in VIEWS},
        "tumour_pixels": {v: stack_slices(tumour[box], v).sum(axis=(1, 2)).tolist() for v in VIEWS},
        "start": [side.start for side in box],
        "shape": list(brain.shape),
    }


def _save(array: NDArray[Any], path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array))
    save_bytes(buffer.getvalue(), path)


def _read(entry: dict[str, Any], folder: Path) -> CachedSubject:
    name = entry["name"]
    return CachedSubject(
        name,
        folder,
        entry["labels"],
        tumour_type(name),
        {m: Intensity(**entry["intensities"][m]) for m in MODALITIES if m in entry["intensities"]},
        {v: np.array(entry["brain_pixels"][v]) for v in VIEWS},
        {v: np.array(entry["tumour_pixels"][v]) for v in VIEWS},
        *(None if entry.get(key) is None else (*entry[key],) for key in ("start", "shape")),
    )


def slice_of(volume: NDArray[Any], view: View, index: int) -> NDArray[Any]:
    """Cut one slice (row, column), or (channel, row, column) of a volume with channels."""
    axis = SLICE_AXIS[view] + volume.ndim - 3
    return np.asarray(np.take(volume, index, axis=axis))
