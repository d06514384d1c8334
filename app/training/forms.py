"""Dataclasses from forms that a person wrote: every key and value is checked, and the nearest known key is named."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from app.core.errors import UsageError

T = TypeVar("T")


def build(cls: type[T], form: Mapping[str, Any], source: str) -> T:
    """A dataclass whose fields may be dataclasses (sections) from its JSON or TOML form.

    Args:
        source: what errors call the form.

    Raises:
        UsageError: names the key, what is wrong, and the nearest known key.
    """
    built: T = _build(cls, form, "", source, cls)
    return built


def _build(cls: type[Any], form: Mapping[str, Any], where: str, source: str, root: type[Any]) -> Any:
    if not isinstance(form, Mapping):
        raise UsageError(f"{source}: {where[:-1]!r} is a section, not a value.")
    hints = typing.get_type_hints(cls)
    known = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
    values = {}
    for key, value in form.items():
        if key not in known:
            raise UsageError(f"{source}: unknown key {where + key!r}{_nearest(where + key, root)}")
        kind = known[key]
        if dataclasses.is_dataclass(kind):
            values[key] = _build(typing.cast("type[Any]", kind), value, f"{where}{key}.", source, root)
        else:
            values[key] = _cast(kind, value, where + key, source)
    return cls(**values)


def _nearest(key: str, root: type[Any]) -> str:
    names = [
        f"{section.name}.{f.name}"
        for section in dataclasses.fields(root)
        if dataclasses.is_dataclass(hint := typing.get_type_hints(root)[section.name])
        for f in dataclasses.fields(hint)
    ]
    names += [f.name for f in dataclasses.fields(root)]
    # A key in the wrong section is more often meant than one that is spelt alike.
    last = key.rpartition(".")[2]
    same = [n for n in names if n.rpartition(".")[2] == last]
    near = same or difflib.get_close_matches(key, names, 1, 0.5)
    if not near:
        near = [n for m in difflib.get_close_matches(last, [n.rpartition(".")[2] for n in names], 1, 0.5)
                for n in names if n.rpartition(".")[2] == m]  # fmt: skip
    if not near:
        return f"; the nearest is {difflib.get_close_matches(key, names, 1, 0.0)[0]!r}."
    return f"; did you mean {near[0]!r}?"


#: How messages call what a key wants.
_KINDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def _cast(kind: Any, value: Any, key: str, source: str) -> Any:
    origin = typing.get_origin(kind)
    if origin is Literal:
        if value not in typing.get_args(kind):
            raise UsageError(f"{source}: {key} = {value!r}; use one of {', '.join(map(str, typing.get_args(kind)))}.")
        return value
    if origin is tuple:
        parts = typing.get_args(kind)
        if not isinstance(value, list | tuple):
            raise UsageError(f"{source}: {key} = {value!r} is no list; write it as [{value!r}].")
        if parts[-1] is not Ellipsis and len(value) != len(parts):
            raise UsageError(f"{source}: {key} = {value!r} is not a list of {len(parts)}.")
        return tuple(_cast(parts[0], v, key, source) for v in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{source}: {key} = {value!r} is not a finite number.")
    if not isinstance(kind, types.UnionType) and type(value) is not kind:
        raise UsageError(f"{source}: {key} = {value!r} is not {_KINDS.get(kind, kind.__name__)}.")
    return value
