"""The table of models (`manifest.json`) with their files and checksums.

Reading it needs no torch. Weights are safetensors, ONNX or JSON; nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, Field, ValidationError

from app.core.atomic_io import save_together
from app.core.constants import Modality
from app.core.errors import UsageError, WeightsError
from app.core.json_text import readable_json
from app.core.weights_dir import advise_on
from app.registry.identity import Identity
from app.registry.lineage import LINEAGE, Lineage, TrainingRecord, read_lineage
from app.registry.plain_files import is_inside, open_plain, read_json
from app.registry.spec import SPEC, GeneratorSpec, ModelSpec, RegressionSpec, Strict

Spec = TypeVar("Spec", bound=Strict)

MANIFEST: Final = "manifest.json"
SCHEMA: Final = 2
#: What a model may be called: its files bear its name.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: How files of these roles end; the others are JSON.
_SUFFIXES = {"torch": ".safetensors", "onnx": ".onnx", "atlas": ".safetensors"}
#: Roles whose files models share, and that are named by their checksum.
_SHARED: Final = {"intensity", "quality", "atlas"}
#: Roles that say something of a model's images, or of a way to compute them, and leave them the same model's.
_ABOUT: Final = {"quality", "int8"}
#: Fields of a specification that name other models, which have identities of their own, or that a user may overrule:
#: headers and records state the fusion that was used.
_OTHERS: Final = {"specialists", "refiner", "refine", "fusion", "flip_average", "max_slice_mm"}
#: Most characters of a damaged manifest that an error repeats.
_SHOWN: Final = 160


def _inside(name: str) -> str:
    if not is_inside(name):
        raise ValueError("a file must lie in the folder of the manifest")
    return name


class FileRecord(Strict):
    """One file of a model: its name in the folder, its checksum and its size."""

    path: Annotated[str, AfterValidator(_inside)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Entry:
    """One model of a folder of weights.

    Attributes:
        name: what `--model` calls it.
        spec: what it is.
        folder: where its files are.
        files: per role (`coefficients`, `intensity`, `torch`, `onnx`, `atlas`, `quality`, `int8`).
    """

    name: str
    spec: ModelSpec
    folder: Path
    files: Mapping[str, FileRecord]

    @property
    def sha256(self) -> str:
        """Checksum of the file that makes the images."""
        role = next(role for role in ("coefficients", "torch", "onnx") if role in self.files)
        return self.files[role].sha256

    @cached_property
    def identity(self) -> Identity:
        """Name, checksum and fingerprint."""
        spec = self.spec.model_dump(mode="json", exclude=_OTHERS, exclude_defaults=True)
        files = {role: record.sha256 for role, record in self.files.items() if role not in _ABOUT}
        form = {"files": files, "spec": spec}
        text = json.dumps(form, sort_keys=True)
        return Identity(self.name, self.sha256, hashlib.sha256(text.encode()).hexdigest())

    def path_of(self, role: str) -> Path:
        """Give the file of a role, its checksum verified.

        Raises:
            WeightsError: the model has no such file, or it is missing, no plain file, or differs from the manifest.
        """
        if role not in self.files:
            raise WeightsError(f"model {self.name!r} in {self.folder} has no {role} file; see `python -m app info`.")
        stated = self.files[role]
        path = self.folder / stated.path
        try:
            with open_plain(path, self.folder) as stream:
                too_long = os.fstat(stream.fileno()).st_size > stated.bytes
                actual = "" if too_long else hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise WeightsError(f"{path} cannot be read ({error.strerror}); put the weights back in place.") from None
        if actual != stated.sha256:
            raise WeightsError(f"{path} does not match its checksum in {MANIFEST}; fetch the weights again.")
        return path


@dataclass(frozen=True)
class Manifest:
    """All models of a folder, the default one, and the fallback where a network cannot be run."""

    folder: Path
    entries: Mapping[str, Entry]
    default: str | None
    fallback: str | None

    def entry(self, name: str | None = None) -> Entry:
        """Give the named model, or the default one.

        Raises:
            WeightsError: there is none of that name.
        """
        chosen = self.default if name is None else name
        if chosen is None or chosen not in self.entries:
            known = ", ".join(sorted(self.entries)) or "none"
            raise WeightsError(f"no model {chosen!r} in {self.folder / MANIFEST}; it has: {known}.")
        return self.entries[chosen]

    def specialists_of(self, entry: Entry) -> dict[Modality, Entry]:
        """Give the models that a generator leaves sequences to, by sequence.

        Raises:
            WeightsError: one of them is not there, or cannot make that sequence of the same inputs.
        """
        spec = entry.spec
        named = spec.specialists if isinstance(spec, GeneratorSpec) else {}
        return {target: self._specialist(entry, target, name) for target, name in named.items()}

    def _specialist(self, entry: Entry, target: Modality, name: str) -> Entry:
        other = self.entries.get(name)
        if other is None or not isinstance(other.spec, GeneratorSpec):
            raise WeightsError(
                f"{self.folder} lacks {name!r}, which makes {target} for {entry.name!r}; "
                "fetch the weights again, or use --no-specialists."
            )
        if target not in other.spec.targets or other.spec.normalization != entry.spec.normalization:
            raise WeightsError(
                f"model {name!r} cannot make {target} for {entry.name!r}: it makes {', '.join(other.spec.targets)} "
                f"and sees intensities normalised by {other.spec.normalization.scheme}; export it again, or use "
                "--no-specialists."
            )
        return other

    @cached_property
    def lineage(self) -> Lineage:
        """What its models learnt from.

        Raises:
            WeightsError: it is damaged.
        """
        return read_lineage(self.folder)


def spec_as(entry: Entry, kind: type[Spec]) -> Spec:
    """Give a model's specification, which must be of a kind.

    Raises:
        WeightsError: it is of another kind.
    """
    if isinstance(entry.spec, kind):
        return entry.spec
    wanted = kind.model_fields["kind"].default
    raise WeightsError(f"model {entry.name!r} in {entry.folder} is a {entry.spec.kind}, not a {wanted}; name another.")


def sha256_of(path: Path) -> str:
    """Give the hexadecimal SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json`, of this schema or of version 0.1.

    Raises:
        WeightsError: it is missing, damaged or of a later schema.
    """
    form = read_form(folder)
    try:
        if form["schema"] == 1:
            from app.registry.upgrade import upgraded

            form = upgraded(form)[0]
        entries = {name: _entry(name, folder, values) for name, values in form["models"].items()}
        default, fallback = _named(form, "default"), _named(form, "fallback")
        if fallback is not None and not isinstance(entries[fallback].spec, RegressionSpec):
            raise ValueError(f"{fallback} is no regression, as a fallback must be")
        return Manifest(folder, entries, default, fallback)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(folder / MANIFEST, error) from None


def read_form(folder: Path) -> dict[str, Any]:
    """Read the manifest's JSON, of a schema that is known.

    Raises:
        WeightsError: it is missing, damaged or of a later schema.
    """
    path = folder / MANIFEST
    try:
        form = dict(read_json(path, folder))
        schema = form["schema"]
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); {advise_on(folder)}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from None
    if schema not in (1, SCHEMA):
        raise WeightsError(f"{path} has schema {str(schema)[:20]}, this version reads {SCHEMA}; update Tetrad.")
    return form


def _damaged(path: Path, error: Exception) -> WeightsError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:_SHOWN]
    return WeightsError(f"{path} is damaged ({reason}); fetch it again.")


def _named(form: Mapping[str, Any], role: str) -> str | None:
    """The name of the default or the fallback model.

    Raises:
        KeyError, TypeError: there is none, or it is no name.
    """
    name = form[role]
    if name is not None and not isinstance(name, str):
        raise TypeError(f"{role} is no name")
    return name


def check_name(name: str) -> None:
    """Check that a model may be called so.

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
    spec: ModelSpec,
    files: Mapping[str, bytes | Path],
    *,
    training: TrainingRecord | None = None,
    ancestors: Lineage | None = None,
    make_default: bool = False,
    make_fallback: bool = False,
) -> Entry:
    """Put a model into a folder, its manifest and its lineage, which are made if need be: all of it, or nothing.

    Args:
        files: per role, a file that is in the folder already, or the content of one. It is named
            `{name}.safetensors` (`torch`), `{name}.onnx` (`onnx`), `{name}-{role}.json`, or for `intensity`,
            `quality` and `atlas`, which models share, by its role and checksum.
        training: how it was made.
        ancestors: trainings of the weights that it was made from.

    Raises:
        UsageError: no model can be called so.
        WeightsError: the folder has a manifest that cannot be read, is of version 0.1, or cannot be made.
        OutputError: it cannot be written to; it stays as it was.
    """
    check_name(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{folder} cannot be made ({error.strerror}); choose another with --weights.") from None
    manifest = _writable(folder)
    contents = {role: _file_of(folder, name, role, content) for role, content in files.items()}
    entry = Entry(name, spec, folder, {role: record for role, (record, _) in contents.items()})
    lineage = manifest.lineage.joined(ancestors or Lineage())
    if training is not None:
        lineage = lineage.joined(Lineage(trainings={entry.sha256: training}))
    default = manifest.default
    if make_default or (default is None and spec.kind in {"regression", "generator"}):
        default = name
    written = replace(
        manifest,
        entries={**manifest.entries, name: entry},
        default=default,
        fallback=name if make_fallback else manifest.fallback,
    )
    new_files = {folder / r.path: c for r, c in contents.values() if c is not None}
    texts = {folder / LINEAGE: readable_json(lineage.to_json()), folder / MANIFEST: encoded(written)}
    save_together({**new_files, **texts})
    remove_unused(manifest, written)
    return read_manifest(folder).entry(name)


def add_file(entry: Entry, role: str, content: bytes) -> Entry:
    """Add one file to a model that is in the manifest; errors as `write_entry`."""
    return write_entry(entry.folder, entry.name, entry.spec, {**_kept(entry), role: content})


def change_spec(entry: Entry, **changes: Any) -> Entry:
    """Change fields of a model's specification; its files stay as they are.

    Raises:
        WeightsError: the manifest cannot be read or written.
        ValidationError: a value cannot be.
    """
    spec = SPEC.validate_python({**dict(entry.spec), **changes})
    return write_entry(entry.folder, entry.name, spec, _kept(entry))


def remove_unused(before: Manifest, after: Manifest) -> None:
    """Remove files that a manifest listed before and lists no more."""
    for path in _listed(before) - _listed(after):
        path.unlink(missing_ok=True)


def _listed(manifest: Manifest) -> set[Path]:
    return {manifest.folder / r.path for entry in manifest.entries.values() for r in entry.files.values()}


def encoded(manifest: Manifest) -> bytes:
    """Give a manifest as the JSON of its file."""
    models = {
        name: {
            "kind": entry.spec.kind,
            "files": {role: record.model_dump() for role, record in entry.files.items()},
            **_plain(entry.spec),
        }
        for name, entry in manifest.entries.items()
    }
    form = {"schema": SCHEMA, "default": manifest.default, "fallback": manifest.fallback, "models": models}
    return readable_json(form)


def _plain(spec: ModelSpec) -> dict[str, Any]:
    """Plain values; what is left to its default is not repeated."""
    values = spec.model_dump(mode="json", exclude_defaults=True)
    # Values that others compute with stand there in full.
    full = spec.model_dump(mode="json", include={"architecture", "normalization", "canvas"})
    return {**values, **full}


def _writable(folder: Path) -> Manifest:
    """The folder's manifest, or an empty one."""
    if not (folder / MANIFEST).exists():
        return Manifest(folder, {}, None, None)
    if read_form(folder)["schema"] != SCHEMA:
        raise WeightsError(f"{folder} is of version 0.1; run `python -m app weights upgrade {folder}` first.")
    return read_manifest(folder)


def _file_of(folder: Path, name: str, role: str, content: bytes | Path) -> tuple[FileRecord, bytes | None]:
    """The record of a file, and its content where it is still to be written."""
    if isinstance(content, Path):
        record = FileRecord(path=content.name, sha256=sha256_of(content), bytes=content.stat().st_size)
        return record, None
    digest = hashlib.sha256(content).hexdigest()
    if role in _SHARED:
        path = f"{role}-{digest[:8]}{_SUFFIXES.get(role, '.json')}"
    else:
        path = f"{name}{_SUFFIXES.get(role, f'-{role}.json')}"
    return FileRecord(path=path, sha256=digest, bytes=len(content)), content


def _kept(entry: Entry) -> dict[str, bytes | Path]:
    return {role: entry.folder / record.path for role, record in entry.files.items()}


def _entry(name: str, folder: Path, form: Mapping[str, Any]) -> Entry:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name[:40]!r} is no name of a model")
    try:
        files = {role: FileRecord.model_validate(record) for role, record in form["files"].items()}
        spec = SPEC.validate_python({key: value for key, value in form.items() if key != "files"})
    except ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc'])) or 'kind'}: {first['msg']}"
        raise WeightsError(
            f"model {name!r} in {folder / MANIFEST} cannot be used: {reason[:_SHOWN]}; "
            "update Tetrad, or fetch the weights again."
        ) from None
    if not files.keys() & {"coefficients", "torch", "onnx"}:
        raise ValueError(f"{name} has no file that makes or finds anything")
    return Entry(name, spec, folder, files)
