"""The table of models (`weights/manifest.json`), their checksums, and the two that are no networks.

Reading the manifest needs no torch. Weights are safetensors, ONNX or JSON; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from app.core.atomic_io import save_together
from app.core.constants import MODALITIES, VIEWS, Modality, View
from app.core.errors import UsageError, WeightsError
from app.preprocessing.normalization import Normalization
from app.preprocessing.slices import Canvas

MANIFEST = "manifest.json"
SCHEMA = 1
Kind = Literal["regression", "generator", "segmenter", "judge", "refiner"]
#: What a model may be called: its files bear its name.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: How files of these roles end; the others are JSON.
_SUFFIXES = {"torch": ".safetensors", "onnx": ".onnx"}


@dataclass(frozen=True)
class Entry:
    """One model of a manifest.

    Attributes:
        name: what `--model` calls it.
        kind: `regression`, `generator` (makes sequences), `segmenter` (finds tumours in slices; teaches), `judge`
            (finds them in volumes; judges what is made) or `refiner` (corrects in 3D what the generator that names it
            makes).
        folder: where its files are.
        files: per role (`coefficients`, `intensity`, `torch`, `onnx`): `path` in the folder, `sha256`, `bytes`.
        normalization: the scheme it was trained with.
        details: the rest of the manifest entry (architecture, canvas, views, training, scores).
    """

    name: str
    kind: Kind
    folder: Path
    files: Mapping[str, Mapping[str, Any]]
    normalization: Normalization
    details: Mapping[str, Any]

    @property
    def sha256(self) -> str:
        """Checksum of the file that makes the images."""
        role = "coefficients" if self.kind == "regression" else "torch" if "torch" in self.files else "onnx"
        return str(self.files[role]["sha256"])

    @property
    def views(self) -> tuple[View, ...]:
        """The views that a generator is run on."""
        return tuple(v for v in VIEWS if v in self.details.get("views", ()))

    @property
    def canvas(self) -> Canvas:
        """The window that a generator sees."""
        return Canvas.from_json(self.details["canvas"])

    @property
    def makes(self) -> tuple[Modality, ...]:
        """The sequences that a regression or generator makes by itself: all of them, unless it is a specialist."""
        return tuple(m for m in MODALITIES if m in self.details.get("makes", MODALITIES))

    def path_of(self, role: str) -> Path:
        """The file of a role, its checksum verified.

        Raises:
            WeightsError: the model has no such file, or it is missing or differs from the manifest.
        """
        if role not in self.files:
            raise WeightsError(f"model {self.name!r} in {self.folder} has no {role} file; see `python -m app info`.")
        stated = self.files[role]
        path: Path = self.folder / stated["path"]
        try:
            actual = sha256_of(path)
        except OSError as error:
            raise WeightsError(f"{path} cannot be read ({error.strerror}); put the weights back in place.") from None
        if actual != stated["sha256"]:
            raise WeightsError(f"{path} does not match its checksum in {MANIFEST}; fetch the weights again.")
        return path


@dataclass(frozen=True)
class Manifest:
    """All models of a folder, the default one, and the one that stands in when a network cannot be run."""

    folder: Path
    entries: Mapping[str, Entry]
    default: str | None
    fallback: str | None

    def entry(self, name: str | None = None) -> Entry:
        """The named model, or the default one.

        Raises:
            WeightsError: there is none of that name.
        """
        chosen = self.default if name is None else name
        if chosen is None or chosen not in self.entries:
            known = ", ".join(sorted(self.entries)) or "none"
            raise WeightsError(f"no model {chosen!r} in {self.folder / MANIFEST}; it has: {known}.")
        return self.entries[chosen]

    def specialists_of(self, entry: Entry) -> dict[Modality, Entry]:
        """The models that a generator leaves sequences to, by sequence.

        Raises:
            WeightsError: one of them is not there, or cannot make that sequence of the same scores.
        """
        found: dict[Modality, Entry] = {}
        for target, name in entry.details.get("specialists", {}).items():
            other = self.entries.get(name)
            if other is None or other.kind != "generator":
                raise WeightsError(f"{self.folder} lacks {name!r}, which makes {target} for {entry.name!r}; "
                                   "fetch the weights again, or use --no-specialists.")  # fmt: skip
            if target not in other.makes or other.normalization != entry.normalization:
                raise WeightsError(f"model {name!r} cannot make {target} for {entry.name!r}: it makes "
                                   f"{', '.join(other.makes)} and sees {other.normalization.scheme} scores; "
                                   "export it again, or use --no-specialists.")  # fmt: skip
            found[target] = other
        return found


def identity(entry: Entry, specialists: Mapping[Modality, Entry]) -> dict[str, Any]:
    """What records say of a model: name, checksum, and those of its specialists by sequence."""
    others = {m: {"name": e.name, "sha256": e.sha256} for m, e in specialists.items()}
    return {"name": entry.name, "sha256": entry.sha256, "specialists": others}


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Reads `manifest.json`.

    Raises:
        WeightsError: it is missing, damaged or of a later schema.
    """
    path = folder / MANIFEST
    try:
        form = json.loads(path.read_text(encoding="utf-8"))
        if form["schema"] != SCHEMA:
            raise WeightsError(f"{path} has schema {form['schema']}, this version reads {SCHEMA}; update Tetrad.")
        entries = {name: _entry(name, folder, e) for name, e in form["models"].items()}
        return Manifest(folder, entries, form.get("default"), form.get("fallback"))
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read ({error.strerror}); give a weights folder with a manifest."
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is damaged ({type(error).__name__}: {error}); fetch it again.") from None


def check_name(name: str) -> None:
    """Whether a model may be called so.

    Raises:
        UsageError: it may not.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"no model can be called {name!r}, since its files bear its name: use letters, digits, '.', '_' and '-', "
            "and begin with a letter or a digit."
        )


def write_entry(
    folder: Path,
    name: str,
    kind: Kind,
    files: Mapping[str, bytes | Path],
    normalization: Normalization,
    details: Mapping[str, Any],
    *,
    make_default: bool = False,
    make_fallback: bool = False,
) -> Entry:
    """Puts a model into a folder and its manifest, which is made if need be: all of its files, or none.

    Args:
        files: per role, a file that is in the folder already, or the content of one, which is named
            `{name}.safetensors` (`torch`), `{name}.onnx` (`onnx`) or `{name}-{role}.json`.

    Raises:
        UsageError: no model can be called so.
        WeightsError: the folder has a manifest that cannot be read, or cannot be made.
        OutputError: it cannot be written to; it stays as it was.
    """
    check_name(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{folder} cannot be made ({error.strerror}); choose another with --weights.") from None
    manifest = folder / MANIFEST
    form: dict[str, Any] = {"schema": SCHEMA, "default": None, "fallback": None, "models": {}}
    if manifest.exists():
        read_manifest(folder)
        form = json.loads(manifest.read_text(encoding="utf-8"))
    described, written = {}, {}
    for role, content in files.items():
        if isinstance(content, Path):
            described[role] = {"path": content.name, "sha256": sha256_of(content), "bytes": content.stat().st_size}
        else:
            path = folder / f"{name}{_SUFFIXES.get(role, f'-{role}.json')}"
            digest = hashlib.sha256(content).hexdigest()
            described[role] = {"path": path.name, "sha256": digest, "bytes": len(content)}
            written[path] = content
    form["models"][name] = {"kind": kind, "files": described, "normalization": normalization.to_json(), **details}
    if make_default or (form["default"] is None and kind in {"regression", "generator"}):
        form["default"] = name
    if make_fallback:
        form["fallback"] = name
    save_together({**written, manifest: (json.dumps(form, indent=2, allow_nan=False) + "\n").encode()})
    return read_manifest(folder).entry(name)


def add_file(entry: Entry, role: str, content: bytes) -> Entry:
    """Adds one file to a model that is in the manifest; errors as `write_entry`."""
    files: dict[str, bytes | Path] = {r: entry.folder / f["path"] for r, f in entry.files.items()}
    files[role] = content
    return write_entry(entry.folder, entry.name, entry.kind, files, entry.normalization, entry.details)


def change_details(entry: Entry, changes: Mapping[str, Any]) -> Entry:
    """Sets some details of a model that is in the manifest; its files stay as they are.

    Raises:
        WeightsError: the manifest cannot be read or written.
    """
    files: dict[str, bytes | Path] = {r: entry.folder / f["path"] for r, f in entry.files.items()}
    details = {**entry.details, **changes}
    return write_entry(entry.folder, entry.name, entry.kind, files, entry.normalization, details)


def _entry(name: str, folder: Path, form: Mapping[str, Any]) -> Entry:
    details = {k: v for k, v in form.items() if k not in {"kind", "files", "normalization"}}
    if form["kind"] not in get_args(Kind):
        raise WeightsError(f"model {name!r} is of an unknown kind ({form['kind']!r}); update Tetrad.")
    return Entry(name, form["kind"], folder, form["files"], Normalization.from_json(form["normalization"]), details)
